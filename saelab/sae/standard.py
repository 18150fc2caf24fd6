"""The standard SAE: a ReLU encoder under an L1 penalty."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from saelab.errors import InputError
from saelab.sae.base import L1_COEFFICIENT, SPARSITY, Encoded, SparseAutoencoder
from saelab.sae.declarations import ForeignForm, Look, Moment
from saelab.sae.elementwise import ElementwiseSAE
from saelab.sae.fused import GateLoss, Learnt
from saelab.sae.sparse import Entries


class StandardSAE(ElementwiseSAE):
    """ReLU encoder, L1 penalty: ``codes = relu(pi)``, ``pi = (x - b_dec) @ W_enc + b_enc`` (paper, eq. 1-4).

    A `gate_threshold` other than 0 switches features off below it: ``codes = relu(pi) * (pi > gate_threshold)``.
    """

    architecture = "standard"
    label = "standard"
    look = Look("#c98500", "#e69f00", "s")
    formula = "relu(pi)"
    terms = (SPARSITY,)
    sparsity_knob = L1_COEFFICIENT
    feature_parameters = ("b_enc",)
    foreign = ForeignForm(
        features=("b_enc",),
        sae_lens="standard",
        dictionary_learning=(
            "AutoEncoder",
            {"bias": "b_dec", "encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"},
        ),
    )
    b_enc: nn.Parameter

    @property
    def gate_bias(self) -> Tensor:
        return self.b_enc

    def magnitude(self, entries: Entries, pi_gate: Tensor) -> Tensor:
        return pi_gate.relu()

    def magnitude_line(self) -> tuple[Tensor, Tensor]:
        bias = self.b_enc.detach()
        return torch.ones_like(bias), torch.zeros_like(bias)

    @torch.no_grad()
    def gate_loss(self) -> GateLoss:
        ones = torch.ones_like(self.b_enc)
        return GateLoss(self.b_enc, ones, self.b_enc, self.live_norms(), auxiliary=False, live=False)

    def set_gate_gradients(self, loss: GateLoss, learnt: Learnt) -> None:
        self.b_enc.grad = learnt.gate_bias + learnt.shift

    def loss_terms(self, x: Tensor, encoded: Encoded, residual: Tensor, moment: Moment) -> Mapping[str, Tensor]:
        positive = self.weighted_by_norms(encoded.entries, encoded.pre.relu())
        return {"sparsity": encoded.entries.mean_sum(positive)}

    def with_own_thresholds(self, own: Tensor) -> ElementwiseSAE:
        """The `JumpReLUSAE` that a standard SAE with thresholds of features' own amounts to."""
        return self.to_jumprelu().with_own_thresholds(own) if own.any() else copy.deepcopy(self)

    def with_shifted_magnitudes(self, by: Tensor) -> ElementwiseSAE:
        return self.to_jumprelu().with_shifted_magnitudes(by) if by.any() else copy.deepcopy(self)

    def portable(self, *, as_jumprelu: bool = False) -> SparseAutoencoder:
        if not as_jumprelu and self.gate_threshold > 0:  # below 0 it does nothing: the relu is there first
            raise InputError(
                f"a standard SAE with gate_threshold={self.gate_threshold} has no such form in other libraries; "
                "write it with as_jumprelu=True, or set its gate_threshold to 0"
            )
        return super().portable(as_jumprelu=as_jumprelu)
