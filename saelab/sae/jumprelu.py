"""The JumpReLU SAE: a threshold for each feature, trained under an L0 penalty (Rajamanoharan et al. 2024)."""

from collections.abc import Mapping
from typing import Any, Self, Unpack

import torch
from torch import Tensor, nn

from saelab.errors import InputError
from saelab.sae.base import Encoded, Shared, SparseAutoencoder
from saelab.sae.declarations import ForeignForm, Knob, Look, LossTerm, Moment
from saelab.sae.elementwise import ElementwiseSAE
from saelab.sae.sparse import Entries

L0_COEFFICIENT = Knob(
    name="l0_coefficient",
    label="L0 penalty",
    short="L0 penalty",
    symbol="\N{GREEK SMALL LETTER LAMDA}",
    meaning="Price of one feature that is on, against squared error summed over the activation's width.",
    default=1.0,
    range=(0.05, 20.0),
    scale="log",
    warms_up=True,
)
BANDWIDTH = 0.5
"""Width of the band around a threshold in which entries move it, in units of activations with E||x||^2 = d_in. The
paper's 0.001 is for E||x||^2 = 1 and runs of millions of steps."""


class JumpReLUSAE(ElementwiseSAE):
    """``codes = relu(z) * (z > threshold)`` with ``z = (x - b_dec) @ W_enc + b_enc`` and a threshold for each feature.

    Trained on E||x - reconstruction||^2 + l0_coefficient * E||codes||_0 (arXiv 2407.14435, eq. 9). Both jump where z
    crosses a threshold, and have no gradient there; pseudo-gradients stand in for it, a rectangle of width
    ``bandwidth`` around the threshold (eq. 11 and 12). For an entry within it the derivative of the code by the
    threshold is ``-threshold / bandwidth``, that of the L0 norm ``-1 / bandwidth``; ``z`` has its ordinary gradient.
    The threshold is trained itself, as in dictionary_learning, where the paper trains its logarithm; after each step it
    is at least 0. It learns at 8 times the learning rate: Adam moves it by that much a step, and it has as far to go as
    activations are large. On layer 2 of the embedded model, 2000 steps, L0 is then 16 at FVU 0.178 for a coefficient of
    1; at the plain rate it stayed at 34, at FVU 0.151 (one seed).

    It is also what a gated SAE computes (arXiv 2404.16014, appendix E): see `GatedSAE.to_jumprelu`. The relu is there
    for those, whose thresholds may be negative. A `gate_threshold` other than 0 adds to every threshold.

    Parameters
    ----------
    bandwidth
        Of the pseudo-gradients; positive.
    d_in, d_sae, shared
        As for every `SparseAutoencoder`.
    """

    architecture = "jumprelu"
    label = "JumpReLU"
    look = Look("#009e73", "#2dbd92", "D", (4, 1.5), width=1.0)
    formula = "relu(z) * (z > threshold)"
    terms = (LossTerm("l0_penalty", "L0 term", L0_COEFFICIENT, hue="l0"),)
    sparsity_knob = L0_COEFFICIENT
    feature_parameters = ("b_enc", "threshold")
    lr_factors = {"threshold": 8.0}  # noqa: RUF012 - declared as a class variable in the base
    foreign = ForeignForm(
        features=("b_enc", "threshold"),
        sae_lens="jumprelu",
        dictionary_learning=(
            "JumpReluAutoEncoder",
            {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec", "threshold": "threshold"},
        ),
    )
    b_enc: nn.Parameter
    threshold: nn.Parameter

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        bandwidth: float = BANDWIDTH,
        **shared: Unpack[Shared],
    ) -> None:
        if not 0 < bandwidth < float("inf"):
            raise InputError(f"bandwidth must be a positive number, not {bandwidth}")
        super().__init__(d_in, d_sae, **shared)
        self.bandwidth = bandwidth

    @property
    def gate_bias(self) -> Tensor:
        return self.b_enc - self.threshold

    def magnitude(self, entries: Entries, pi_gate: Tensor) -> Tensor:
        return (entries.u + entries.per_feature(self.b_enc)).relu()

    @torch.no_grad()
    def magnitude_line(self) -> tuple[Tensor, Tensor]:
        return torch.ones_like(self.threshold), self.threshold.clone()

    @property
    def loss_floor(self) -> float:
        """Entries below the band around their threshold add nothing."""
        return super().loss_floor - self.bandwidth / 2

    def encoded_at(self, entries: Entries) -> Encoded:
        encoded = super().encoded_at(entries)
        at, moving = self._band(encoded)
        # Zero in value: what stands beside it is the pseudo-gradient.
        return encoded._replace(codes=encoded.codes - (at + self.gate_threshold) * moving)

    def loss_terms(self, x: Tensor, encoded: Encoded, residual: Tensor, moment: Moment) -> Mapping[str, Tensor]:
        """E||codes||_0: the number of features on, its pseudo-gradient with respect to the thresholds alone."""
        on = (encoded.codes > 0).to(encoded.codes)
        return {"l0_penalty": encoded.entries.mean_sum(on - self._band(encoded)[1])}

    def _band(self, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """Thresholds at the entries; and a 0 whose derivative by them is 1 / bandwidth within the band, else 0."""
        threshold = encoded.entries.per_feature(self.threshold)
        inside = (encoded.pre.detach() - self.gate_threshold).abs() < self.bandwidth / 2
        # Below 0 the relu has switched the feature off already: there nothing jumps at its threshold.
        inside &= threshold.detach() + self.gate_threshold >= 0
        return threshold.detach(), (threshold - threshold.detach()) * (inside / self.bandwidth)

    @torch.no_grad()
    def after_update(self, observed: Mapping[str, Tensor]) -> None:
        self.threshold.clamp_(min=0)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "bandwidth": self.bandwidth}

    def to_jumprelu(self) -> "JumpReLUSAE":
        sae = self._changed(threshold=torch.full_like(self.threshold, self.gate_threshold))
        sae.gate_threshold = 0.0
        return sae

    def with_own_thresholds(self, own: Tensor) -> Self:
        return self._changed(threshold=own)

    def with_shifted_magnitudes(self, by: Tensor) -> Self:
        return self._changed(b_enc=by, threshold=by)

    def portable(self, *, as_jumprelu: bool = False) -> SparseAutoencoder:
        return self.to_jumprelu()
