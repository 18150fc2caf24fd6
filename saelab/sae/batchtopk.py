"""The BatchTopK SAE: k features on per input on average, chosen among those of a whole batch (Bussmann et al. 2024)."""

from collections.abc import Mapping
from typing import Unpack

import torch
from torch import Tensor

from saelab.sae.base import Encoded, Shared, SparseAutoencoder
from saelab.sae.declarations import ForeignForm, Look
from saelab.sae.jumprelu import JumpReLUSAE
from saelab.sae.sparse import Entries, positions_above
from saelab.sae.topk import TopKSAE

THRESHOLD_RATE = 0.01
"""Share of each step's smallest kept pre-activation in the running mean that is the threshold."""


class BatchTopKSAE(TopKSAE):
    """A `TopKSAE` that keeps the ``k * batch`` largest pre-activations of a batch, however many of each input.

    That is how it trains. At inference an input's codes must not depend on the others beside it: ``codes = relu(pi) *
    (pi > threshold)``, with one ``threshold`` for all features, the mean over batches of the smallest positive
    pre-activation that was kept (arXiv 2412.06410, section 3), here a running mean over training. A change of ``k``
    therefore shows in the codes once training has moved the threshold.
    """

    architecture = "batchtopk"
    label = "BatchTopK"
    look = Look("#d55e00", "#f0803c", "P", (1, 1.5), width=1.0)
    formula = "relu(pi) * (pi > threshold)"
    foreign = ForeignForm(
        features=("b_enc",),
        sae_lens=None,  # which keeps its own as JumpReLU, too
        dictionary_learning=(
            "BatchTopKSAE",
            {"b_dec": "b_dec", "encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"},
        ),
        scalars={"k": None, "threshold": None},
    )
    shares_a_batch = False
    threshold: Tensor

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        k: int | None = None,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(d_in, d_sae, k, **shared)
        self.register_buffer("threshold", self.W_enc.new_zeros(()))

    def activate(self, entries: Entries) -> Tensor:
        pi = entries.u + self.b_enc
        return pi.relu() * (pi > self.threshold)

    def chosen(self, pi: Tensor) -> Tensor:
        """The positive ones among the k * batch largest."""
        flat = positions_above(pi, pi.new_zeros(self.d_sae))  # no other has a code, and they are few after a while
        n_kept = min(self.k, self.d_sae) * len(pi)
        if len(flat) <= n_kept:
            return flat
        return flat[pi.take(flat).topk(n_kept, sorted=False).indices.sort().values]

    @torch.no_grad()
    def observe(self, encoded: Encoded) -> Mapping[str, Tensor]:
        codes = encoded.codes
        # Infinite where none is on. No boolean index: a CPU would wait for its GPU.
        return {"smallest": codes.masked_fill(codes <= 0, torch.inf).min()} if codes.numel() else {}

    @torch.no_grad()
    def after_update(self, observed: Mapping[str, Tensor]) -> None:
        if "smallest" in observed:
            smallest = observed["smallest"].to(self.threshold)
            # From the first step on, where there is no mean yet.
            moved = torch.where(self.threshold == 0, smallest, self.threshold.lerp(smallest, THRESHOLD_RATE))
            self.threshold.copy_(torch.where(smallest.isfinite(), moved, self.threshold))

    @torch.no_grad()
    def to_jumprelu(self) -> JumpReLUSAE:
        """The JumpReLU SAE with the same codes at inference: one threshold for all features."""
        sae = JumpReLUSAE(self.d_in, self.d_sae, preset=self.preset, device=self.W_enc.device, dtype=self.W_enc.dtype)
        for name, parameter in self.named_parameters():
            sae.get_parameter(name).copy_(parameter)
        sae.threshold.fill_(self.threshold)
        sae.trained_on = self.trained_on
        return sae

    def portable(self, *, as_jumprelu: bool = False) -> SparseAutoencoder:
        return self.to_jumprelu() if as_jumprelu else self
