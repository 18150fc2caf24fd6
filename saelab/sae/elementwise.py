"""SAEs whose features each decide for themselves whether they are on: a gate, a magnitude, and a gate threshold."""

import copy
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from saelab.errors import InputError, InputTypeError
from saelab.quantities import Spread
from saelab.sae import workers
from saelab.sae.base import ARCHITECTURES, BatchSums, Encoded, GradientPass, SparseAutoencoder
from saelab.sae.declarations import Knob, Moment
from saelab.sae.fused import GateLoss, Learnt, learn
from saelab.sae.sparse import Entries, Search

if TYPE_CHECKING:
    from saelab.sae.jumprelu import JumpReLUSAE

GATE_THRESHOLD = Knob(
    name="gate_threshold",
    label="Gate threshold",
    short="gate threshold",
    symbol="\N{GREEK SMALL LETTER THETA}",
    meaning="A feature is on where its pre-activation (gated: its gate's) exceeds this. It acts at once.",
    default=0.0,
    range=(-1.0, 4.0),
    minimum=-math.inf,
    paper=0.0,
)


class ElementwiseSAE(SparseAutoencoder):
    """Base of SAEs with ``codes = (pi_gate > gate_threshold) * magnitude``, where ``pi_gate = u + gate_bias``.

    An architecture gives `gate_bias`, `magnitude` and `magnitude_line`. All of it works on the `Entries` of ``u``, so
    that a training step computes the few that are active, and costs one encoder matmul.
    """

    live_settings = (GATE_THRESHOLD,)
    gate_threshold: float
    """A feature is on where its gate pre-activation exceeds this; 0 in the paper. May be changed at any time."""

    @property
    @abstractmethod
    def gate_bias(self) -> Tensor:
        """``(d_sae,)``: the gate's pre-activation is ``u + gate_bias``."""

    @abstractmethod
    def magnitude(self, entries: Entries, pi_gate: Tensor) -> Tensor:
        """What a feature's code is where it is on, non-negative; in the shape of ``pi_gate``."""

    def magnitude_line(self) -> tuple[Tensor, Tensor]:
        """Slope and shift, ``(d_sae,)`` each, without a gradient: ``magnitude = relu(slope * pi_gate + shift)``.

        The shift is what a feature jumps by at a gate threshold of 0. Without it, the magnitude is a rescaled ReLU of
        the gate's pre-activation: the natural reference point in the authors' discussion of the paper.

        Raises
        ------
        ValueError
            The magnitude is no such line: it has another shape, or with untied encoders looks along other directions.
            There is then no JumpReLU form, no `GateExplorer` and no natural reference point.
        """
        raise InputError(f"the magnitude of a {self.label} SAE is no line in its gate's pre-activation")

    def gate(self, entries: Entries) -> Tensor:
        """Gate pre-activations at ``entries``; on is what exceeds `gate_threshold`."""
        return entries.u + entries.per_feature(self.gate_bias)

    @staticmethod
    def codes_at(gate_threshold: float | Tensor, pi_gate: Tensor, magnitude: Tensor) -> Tensor:
        """The codes: a feature's magnitude where its gate pre-activation exceeds the threshold, else 0."""
        return (pi_gate > gate_threshold) * magnitude

    def activate(self, entries: Entries) -> Tensor:
        pi_gate = self.gate(entries)
        return self.codes_at(self.gate_threshold, pi_gate, self.magnitude(entries, pi_gate))

    @property
    def loss_floor(self) -> float:
        """Entries whose gate pre-activation does not exceed this add nothing to the loss, nor to its gradient."""
        return min(0.0, self.gate_threshold)

    def gate_loss(self) -> GateLoss | None:
        """Its loss as one that `saelab.sae.fused` takes; None by default, where it is no such loss.

        Its terms then are "sparsity", the L1 penalty, and where there is an auxiliary term "auxiliary".
        """
        return None

    def set_gate_gradients(self, loss: GateLoss, learnt: Learnt) -> None:
        """Give its own parameters their gradients, from those of the three tensors of its `gate_loss`.

        Has to be there where `gate_loss` gives one.
        """
        raise NotImplementedError(f"{type(self).__name__} has a gate_loss but no set_gate_gradients")

    def encode_for_loss(self, x: Tensor) -> Encoded:
        """All entries, or those that matter to the loss where that is faster and gives the same."""
        return self.encoded_at(self._search(x).entries())

    def gradient_pass(
        self,
        x: Tensor,
        coefficients: Mapping[str, float],
        moment: Moment = Moment(),  # noqa: B008
        *,
        share: float = 1.0,
    ) -> GradientPass:
        self._check_shape(x)
        search = self._search(x)
        fuses = search.is_compiled and not torch.is_autocast_enabled(x.device.type)
        loss = self.gate_loss() if fuses else None
        if loss is not None:
            of_terms = {term.name: coefficients[term.coefficient.name] for term in self.terms}
            sparsity, auxiliary = of_terms.get("sparsity", 0.0), of_terms.get("auxiliary", 0.0)
            learnt = learn(
                search, x, self.b_dec, self.W_enc, self.W_dec, loss,
                threshold=self.gate_threshold, sparsity=sparsity, auxiliary=auxiliary, share=share,
            )  # fmt: skip
            self.set_gate_gradients(loss, learnt)
            sums = learnt.sums
            total = sums.error + sparsity * sums.penalty + auxiliary * sums.auxiliary_error
            total = float(workers.number(total, x.numpy().dtype))  # infinite where the gradients may be
            values = {"sparsity": sums.penalty, "auxiliary": sums.auxiliary_error}
            means = [sums.n_on, total, sums.error, *(values[name] for name in of_terms)]
            spread = Spread(_float64(len(x)), learnt.mean, _float64(sums.squares))
            of_batch = BatchSums(_float64(means), _float64([sums.rr, sums.xr, sums.error]), spread)
            return GradientPass(of_batch, learnt.fired, {})
        if (active := search.active_entries()) is not None:
            return self._backward(x, self.encoded_at(active), coefficients, moment, share)
        return self._backward_in_parts(
            x, lambda *rows: self.encoded_at(search.all_entries(*rows)), coefficients, moment, share
        )

    def _search(self, x: Tensor) -> Search:
        return Search(x, self.b_dec, self.W_enc, self.gate_bias, floor=self.loss_floor)

    def encoded_at(self, entries: Entries) -> Encoded:
        """What the loss sees at these entries."""
        pi_gate = self.gate(entries)
        magnitude = self.magnitude(entries, pi_gate)
        codes = self.codes_at(self.gate_threshold, pi_gate, magnitude)
        # A feature that only a raised threshold keeps off still learns: it is not dead.
        firing = codes if self.gate_threshold <= 0 else self.codes_at(0.0, pi_gate, magnitude)
        return Encoded(entries, pi_gate, codes, firing)

    def with_own_thresholds(self, own: Tensor) -> "ElementwiseSAE":
        """A copy with ``own``, ``(d_sae,)``, added to the gate threshold of each feature; magnitudes stay as they are.

        Raises
        ------
        ValueError
            This architecture has no place for thresholds of features' own.
        """
        raise InputError(f"a {self.label} SAE has no parameters for features' own thresholds")

    def with_shifted_magnitudes(self, by: Tensor) -> "ElementwiseSAE":
        """A copy whose magnitudes have ``by``, ``(d_sae,)``, added to their shift (`magnitude_line`).

        Raises
        ------
        ValueError
            This architecture has no parameter for that.
        """
        raise InputError(f"a {self.label} SAE has no parameter that shifts its magnitudes")

    @torch.no_grad()
    def to_jumprelu(self) -> "JumpReLUSAE":
        """The JumpReLU SAE with the same codes (paper, appendix E); `gate_threshold` is folded into its thresholds.

        Raises
        ------
        ValueError
            With untied encoders: gate and magnitude then look along different directions.
        """
        from saelab.sae.jumprelu import JumpReLUSAE  # which derives from this class

        slope, shift = self.magnitude_line()
        sae = JumpReLUSAE(self.d_in, self.d_sae, preset=self.preset, device=self.W_enc.device, dtype=self.W_enc.dtype)
        sae.W_enc.copy_(self.W_enc * slope)
        sae.W_dec.copy_(self.W_dec)
        sae.b_dec.copy_(self.b_dec)
        sae.b_enc.copy_(slope * self.gate_bias + shift)
        sae.threshold.copy_(slope * self.gate_threshold + shift)
        sae.trained_on = self.trained_on
        return sae

    def portable(self, *, as_jumprelu: bool = False) -> SparseAutoencoder:
        return self.to_jumprelu() if as_jumprelu else super().portable()

    def _changed(self, **added: Tensor) -> Self:
        """A copy with something added to its parameters."""
        sae = copy.deepcopy(self)
        with torch.no_grad():
            for name, by in added.items():
                sae.get_parameter(name).add_(by)
        return sae


def _float64(values: float | list[float]) -> Tensor:
    """Of a step in which every microsecond counts: `torch.tensor` takes twice as long."""
    return torch.from_numpy(np.array(values, np.float64))


def elementwise(sae: SparseAutoencoder, purpose: str) -> ElementwiseSAE:
    """``sae`` itself if it has a gate threshold, else a TypeError that says so; ``purpose`` is what was asked for."""
    if isinstance(sae, ElementwiseSAE):
        return sae
    formula = f": its codes are {sae.formula}" if sae.formula else ""
    raise InputTypeError(
        f"a {sae.label} SAE has no gate threshold{formula}; {purpose} takes one of "
        f"{', '.join(cls.label for cls in ARCHITECTURES.values() if issubclass(cls, ElementwiseSAE))}"
    )
