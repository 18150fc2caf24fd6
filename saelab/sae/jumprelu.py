"""The JumpReLU SAE: a threshold for each feature."""

import torch
from torch import Tensor, nn

from saelab.sae.base import Look, SparseAutoencoder
from saelab.sae.sparse import Entries


class JumpReLUSAE(SparseAutoencoder):
    """``codes = relu(z) * (z > threshold)`` with ``z = (x - b_dec) @ W_enc + b_enc`` and a threshold for each feature.

    What a gated SAE computes (paper, appendix E): see `GatedSAE.to_jumprelu`. The relu stays, as thresholds may be
    negative. ``threshold`` is not trained, having no gradient; the loss penalises the L1 norm of the codes. A
    `gate_threshold` other than 0 adds to every threshold.
    """

    architecture = "jumprelu"
    label = "JumpReLU"
    look = Look("#009e73", "#2dbd92", "D", (4, 1.5), width=1.0)
    feature_parameters = ("b_enc", "threshold")
    frozen_parameters = ("threshold",)
    b_enc: nn.Parameter
    threshold: nn.Parameter

    @property
    def gate_bias(self) -> Tensor:
        return self.b_enc - self.threshold

    def magnitude(self, entries: Entries, pi_gate: Tensor) -> Tensor:
        return (entries.u + entries.per_feature(self.b_enc)).relu()

    @torch.no_grad()
    def magnitude_line(self) -> tuple[Tensor, Tensor]:
        return torch.ones_like(self.threshold), self.threshold.clone()

    def penalized(self, pi_gate: Tensor, codes: Tensor) -> Tensor:
        return codes
