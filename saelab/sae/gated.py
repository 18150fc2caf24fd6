"""The gated SAE: whether a feature is on and how strongly, decided apart (Rajamanoharan et al. 2024)."""

import copy
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, get_args

import torch
from torch import Tensor, nn

from saelab.errors import InputError
from saelab.sae.base import L1_COEFFICIENT, SPARSITY, Encoded, Shared, SparseAutoencoder, mean_square
from saelab.sae.declarations import ForeignForm, Knob, Look, LossTerm, Moment
from saelab.sae.elementwise import ElementwiseSAE
from saelab.sae.fused import GateLoss, Learnt
from saelab.sae.sparse import Entries

if TYPE_CHECKING:
    from saelab.sae.jumprelu import JumpReLUSAE

Ablation = Literal["unfrozen_decoder", "no_r_mag", "untied_encoders", "no_auxiliary"]
AUX_COEFFICIENT = Knob(
    name="aux_coefficient",
    label="Auxiliary loss",
    short="auxiliary",
    symbol="\N{GREEK SMALL LETTER ALPHA}",
    meaning="Weight of the term that teaches the gate to reconstruct.",
    default=1.0,
    range=(0.0, 4.0),
    paper=1.0,
)


class GatedSAE(ElementwiseSAE):
    """Gate and magnitude from one shared encoder (paper, eq. 6-8 and appendix G).

    With ``u = (x - b_dec) @ W_enc``: ``pi_gate = u + b_gate``, ``pi_mag = u * exp(r_mag) + b_mag``,
    ``codes = (pi_gate > gate_threshold) * relu(pi_mag)``. The L1 and the auxiliary term see ``relu(pi_gate)``; in the
    paper preset the auxiliary decode gives no gradient to ``W_dec`` and ``b_dec``.

    Parameters
    ----------
    ablations
        What to leave out, any of (paper, section 5.1, all in its own preset): ``"unfrozen_decoder"`` lets the auxiliary
        term train the decoder; ``"no_r_mag"`` shares the encoder without rescaling; ``"untied_encoders"`` gives the
        magnitude its own encoder ``W_mag``, ``pi_mag = (x - b_dec) @ W_mag + b_mag``; ``"no_auxiliary"`` drops the
        auxiliary term, so that only the L1 penalty moves the gate's bias.
    d_in, d_sae, shared
        As for every `SparseAutoencoder`.
    """

    architecture = "gated"
    label = "gated"
    look = Look("#222222", "#e8e8e8", "o")
    formula = "(pi_gate > 0) * relu(exp(r_mag) * u + b_mag)"
    terms = (SPARSITY, LossTerm("auxiliary", "auxiliary term", AUX_COEFFICIENT, hue="gamma"))
    sparsity_knob = L1_COEFFICIENT
    ablation_labels = {  # noqa: RUF012 - declared as a class variable in the base
        "unfrozen_decoder": "decoder not frozen",
        "no_r_mag": "no r_mag",
        "untied_encoders": "untied encoders",
        "no_auxiliary": "no auxiliary term",
    }
    foreign = ForeignForm(
        features=("b_gate", "b_mag", "r_mag"),
        sae_lens="gated",
        dictionary_learning=(
            "GatedAutoEncoder",
            {
                "decoder_bias": "b_dec", "encoder.weight": "W_enc", "decoder.weight": "W_dec",
                "gate_bias": "b_gate", "mag_bias": "b_mag", "r_mag": "r_mag",
            },
        ),
    )  # fmt: skip
    b_gate: nn.Parameter
    b_mag: nn.Parameter
    r_mag: nn.Parameter
    W_mag: nn.Parameter

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        ablations: Collection[Ablation] = (),
        **shared: Unpack[Shared],
    ) -> None:
        unknown = {ablations} if isinstance(ablations, str) else set(ablations) - set(get_args(Ablation))
        if unknown:
            raise InputError(
                f"ablations must be a collection of {', '.join(get_args(Ablation))}; not understood: {unknown}"
            )
        preset = shared.get("preset", "paper")
        if ablations and preset != "paper":
            raise InputError(f"the ablations are those of preset 'paper'; take that, or none with {preset!r}")
        self.ablations = frozenset(ablations)
        super().__init__(d_in, d_sae, **shared)

    @property
    def feature_parameters(self) -> tuple[str, ...]:
        rescales = self.ablations.isdisjoint({"no_r_mag", "untied_encoders"})
        return ("b_gate", "b_mag", "r_mag") if rescales else ("b_gate", "b_mag")

    @property
    def encoder_parameters(self) -> tuple[str, ...]:
        return ("W_enc", "W_mag") if "untied_encoders" in self.ablations else ("W_enc",)

    @property
    def gate_bias(self) -> Tensor:
        return self.b_gate

    def magnitude(self, entries: Entries, pi_gate: Tensor) -> Tensor:
        if "untied_encoders" in self.ablations:
            u = entries.project(self.W_mag)
        elif "no_r_mag" in self.ablations:
            u = entries.u
        else:
            u = entries.u * entries.per_feature(self.r_mag.exp())
        return (u + entries.per_feature(self.b_mag)).relu()

    @torch.no_grad()
    def magnitude_line(self) -> tuple[Tensor, Tensor]:
        slope = self._rescaling("have its magnitude written as a line in its gate's pre-activation")
        return slope, self.b_mag - slope * self.b_gate

    @property
    def _trains_decoder_by_auxiliary(self) -> bool:
        return self.preset != "paper" or "unfrozen_decoder" in self.ablations

    @torch.no_grad()
    def gate_loss(self) -> GateLoss | None:
        if "untied_encoders" in self.ablations:
            return None
        auxiliary = "no_auxiliary" not in self.ablations
        live = auxiliary and self._trains_decoder_by_auxiliary
        return GateLoss(self.b_gate, self._slope(), self.b_mag, self.live_norms(), auxiliary, live)

    @torch.no_grad()
    def set_gate_gradients(self, loss: GateLoss, learnt: Learnt) -> None:
        self.b_gate.grad, self.b_mag.grad = learnt.gate_bias, learnt.shift
        if "r_mag" in self.feature_parameters:
            self.r_mag.grad = learnt.slope * loss.slope

    def loss_terms(self, x: Tensor, encoded: Encoded, residual: Tensor, moment: Moment) -> Mapping[str, Tensor]:
        """The L1 penalty on relu(pi_gate), and E||x - recon_frozen(relu(pi_gate))||^2 (paper, eq. 8).

        In the paper preset that decode gives no gradient to W_dec and b_dec.
        """
        entries, positive = encoded.entries, encoded.pre.relu()
        values = {"sparsity": entries.mean_sum(self.weighted_by_norms(entries, positive))}
        if "no_auxiliary" not in self.ablations:
            live = self._trains_decoder_by_auxiliary
            W_dec, b_dec = (self.W_dec, self.b_dec) if live else (self.W_dec.detach(), self.b_dec.detach())
            values["auxiliary"] = mean_square(entries.decode(positive, W_dec) + (b_dec - x))
        return values

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "ablations": sorted(self.ablations)}

    def to_jumprelu(self) -> "JumpReLUSAE":
        self._rescaling("be written as a JumpReLU SAE")
        return super().to_jumprelu()

    def with_own_thresholds(self, own: Tensor) -> Self:
        return self._changed(b_gate=-own)

    def with_shifted_magnitudes(self, by: Tensor) -> Self:
        return self._changed(b_mag=by)

    @torch.no_grad()
    def portable(self, *, as_jumprelu: bool = False) -> SparseAutoencoder:
        if as_jumprelu:
            return self.to_jumprelu()
        if "untied_encoders" in self.ablations:
            raise InputError(
                "a gated SAE with untied encoders cannot be exported: other libraries have no place for W_mag"
            )
        sae = GatedSAE(self.d_in, self.d_sae, preset=self.preset, device=self.W_enc.device, dtype=self.W_enc.dtype)
        for name, parameter in self.named_parameters():
            sae.get_parameter(name).copy_(parameter)
        sae.b_gate.sub_(self.gate_threshold)
        sae.trained_on = self.trained_on
        return sae

    @torch.no_grad()
    def with_natural_b_mag(self) -> Self:
        """A copy with ``b_mag = exp(r_mag) * b_gate``: magnitudes then start from 0 at the gate, a rescaled ReLU.

        The discontinuity of the codes at the gate is gone; what is left is rescaling without a shift.

        Raises
        ------
        ValueError
            With untied encoders, which have no such reference.
        """
        scale = self._rescaling("be given a natural b_mag")
        sae = copy.deepcopy(self)
        sae.b_mag.copy_(scale * self.b_gate)
        return sae

    def _rescaling(self, purpose: str) -> Tensor:
        """``exp(r_mag)``, ``(d_sae,)``; ones under the ablation without it."""
        if "untied_encoders" in self.ablations:
            raise InputError(f"a gated SAE with untied encoders cannot {purpose}: its magnitude has its own W_mag")
        return self._slope()

    def _slope(self) -> Tensor:
        return self.r_mag.exp() if "r_mag" in self.feature_parameters else torch.ones_like(self.b_gate)
