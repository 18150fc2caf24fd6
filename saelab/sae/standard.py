"""The standard SAE: a ReLU encoder under an L1 penalty."""

import torch
from torch import Tensor, nn

from saelab.sae.base import Look, SparseAutoencoder
from saelab.sae.sparse import Entries


class StandardSAE(SparseAutoencoder):
    """ReLU encoder, L1 penalty: ``codes = relu(pi)``, ``pi = (x - b_dec) @ W_enc + b_enc`` (paper, eq. 1-4).

    A `gate_threshold` other than 0 switches features off below it: ``codes = relu(pi) * (pi > gate_threshold)``.
    """

    architecture = "standard"
    label = "standard"
    look = Look("#c98500", "#e69f00", "s")
    feature_parameters = ("b_enc",)
    b_enc: nn.Parameter

    @property
    def gate_bias(self) -> Tensor:
        return self.b_enc

    def magnitude(self, entries: Entries, pi_gate: Tensor) -> Tensor:
        return pi_gate.relu()

    def magnitude_line(self) -> tuple[Tensor, Tensor]:
        bias = self.b_enc.detach()
        return torch.ones_like(bias), torch.zeros_like(bias)
