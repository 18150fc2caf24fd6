"""Rescale and shift: a trained standard SAE whose magnitudes are repaired."""

from typing import Self

import torch
from torch import Tensor, nn

from saelab.errors import InputTypeError
from saelab.sae.base import SparseAutoencoder
from saelab.sae.declarations import Look
from saelab.sae.elementwise import ElementwiseSAE
from saelab.sae.fused import GateLoss, Learnt
from saelab.sae.sparse import Entries
from saelab.sae.standard import StandardSAE


class RescaleShiftSAE(ElementwiseSAE):
    """A trained standard SAE, frozen, whose codes are rescaled and shifted to undo shrinkage (paper, section 5.2).

    ``codes = (pi > gate_threshold) * relu(exp(r_mag) * pi + b_mag)`` with the standard SAE's ``pi``. Only ``r_mag`` and
    ``b_mag`` learn, on the reconstruction error alone. Make one with `from_standard`.
    """

    architecture = "rescale_shift"
    label = "rescale and shift"
    look = Look("#2a8fc9", "#56b4e9", "^", (4, 1.5))
    formula = "(pi > 0) * relu(exp(r_mag) * pi + b_mag)"
    trains_from_scratch = False
    feature_parameters = ("b_enc", "r_mag", "b_mag")
    frozen_parameters = ("W_enc", "W_dec", "b_dec", "b_enc")
    b_enc: nn.Parameter
    r_mag: nn.Parameter
    b_mag: nn.Parameter

    @classmethod
    @torch.no_grad()
    def from_standard(cls, standard: StandardSAE) -> Self:
        """A rescale-and-shift SAE on a copy of ``standard``'s weights; until it is trained, their codes are equal."""
        if not isinstance(standard, StandardSAE):
            raise InputTypeError(f"from_standard takes a StandardSAE, not a {type(standard).__name__}")
        W = standard.W_enc
        sae = cls(standard.d_in, standard.d_sae, preset=standard.preset, device=W.device, dtype=W.dtype)
        for name, parameter in standard.named_parameters():
            sae.get_parameter(name).copy_(parameter)
        sae.gate_threshold = standard.gate_threshold
        sae.trained_on = standard.trained_on
        return sae

    @property
    def gate_bias(self) -> Tensor:
        return self.b_enc

    def magnitude(self, entries: Entries, pi_gate: Tensor) -> Tensor:
        return (pi_gate * entries.per_feature(self.r_mag.exp()) + entries.per_feature(self.b_mag)).relu()

    @torch.no_grad()
    def gate_loss(self) -> GateLoss:
        slope = self.r_mag.exp()
        return GateLoss(self.b_enc, slope, slope * self.b_enc + self.b_mag, norms=None, auxiliary=False, live=False)

    @torch.no_grad()
    def set_gate_gradients(self, loss: GateLoss, learnt: Learnt) -> None:
        self.r_mag.grad = (learnt.slope + self.b_enc * learnt.shift) * loss.slope
        self.b_mag.grad = learnt.shift

    @torch.no_grad()
    def magnitude_line(self) -> tuple[Tensor, Tensor]:
        return self.r_mag.exp(), self.b_mag.clone()

    def with_own_thresholds(self, own: Tensor) -> Self:
        return self._changed(b_mag=self.r_mag.exp() * own, b_enc=-own)

    def with_shifted_magnitudes(self, by: Tensor) -> Self:
        return self._changed(b_mag=by)

    @torch.no_grad()
    def portable(self, *, as_jumprelu: bool = False) -> SparseAutoencoder:
        """As a gated SAE: ``exp(r_mag) * pi + b_mag = exp(r_mag) * u + (exp(r_mag) * b_enc + b_mag)``."""
        from saelab.sae.gated import GatedSAE  # which comes after this class in the registry

        if as_jumprelu:
            return self.to_jumprelu()
        sae = GatedSAE(self.d_in, self.d_sae, preset=self.preset, device=self.W_enc.device, dtype=self.W_enc.dtype)
        for name in ("W_enc", "W_dec", "b_dec", "r_mag"):
            sae.get_parameter(name).copy_(self.get_parameter(name))
        sae.b_gate.copy_(self.b_enc - self.gate_threshold)
        sae.b_mag.copy_(self.r_mag.exp() * self.b_enc + self.b_mag)
        sae.trained_on = self.trained_on
        return sae
