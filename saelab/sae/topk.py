"""The TopK SAE: the k largest pre-activations of each input, and no penalty (Gao et al. 2024)."""

from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from saelab.errors import InputError
from saelab.sae import workers
from saelab.sae.base import Encoded, Shared, SparseAutoencoder, mean_square
from saelab.sae.declarations import ForeignForm, Knob, Look, LossTerm, Moment
from saelab.sae.sparse import Entries, choose_entries

K = Knob(
    name="k",
    label="Features kept",
    short="k",
    symbol="k",
    meaning="Features kept per input: those with the k largest pre-activations.",
    default=32,
    range=(1, 128),
    step=1,
    is_whole=True,
    minimum=1,
)
AUXK_COEFFICIENT = Knob(
    name="auxk_coefficient",
    label="AuxK loss",
    short="AuxK",
    symbol="\N{GREEK SMALL LETTER ALPHA}",
    meaning="Weight of the term in which dead features reconstruct what the others miss.",
    default=1 / 32,
    range=(0.0, 1.0),
    paper=1 / 32,
)
AUXK = LossTerm("auxk", "AuxK term", AUXK_COEFFICIENT, hue="dead")


class TopKSAE(SparseAutoencoder):
    """``codes = relu(topk(pi))`` with ``pi = (x - b_dec) @ W_enc + b_enc``: of each input the k largest, the rest 0.

    Trained on the reconstruction error, plus ``auxk_coefficient`` times the AuxK loss (arXiv 2406.04093, appendix A.2):
    the error with which the d_in / 2 largest pre-activations of dead features reconstruct the residual. As in the
    paper's code the residual is a constant there. There is no gate threshold, and no L1 penalty.

    Parameters
    ----------
    k
        Features on per input, from 1 to d_sae; 32 by default. Fewer are on where fewer pre-activations are positive.
        It may be changed at any time.
    d_in, d_sae, shared
        As for every `SparseAutoencoder`.
    """

    architecture = "topk"
    label = "TopK"
    look = Look("#b0568c", "#d98db6", "v", (1, 1.5), width=1.0)
    formula = "relu(topk(pi))"
    terms = (AUXK,)
    live_settings = (K,)
    sparsity_knob = K
    revives_dead_features = True
    feature_parameters = ("b_enc",)
    foreign = ForeignForm(
        features=("b_enc",),
        sae_lens="topk",
        dictionary_learning=(
            "AutoEncoderTopK",
            {"b_dec": "b_dec", "encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"},
        ),
        sae_lens_fields={"k": "k"},
        scalars={"k": None, "threshold": -1.0},
    )
    k: int
    b_enc: nn.Parameter

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        k: int | None = None,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(d_in, d_sae, **shared)
        self.k = min(self.k, d_sae) if k is None else k
        if not 1 <= self.k <= d_sae:
            raise InputError(f"k must lie between 1 and d_sae={d_sae}, not {k}")

    def activate(self, entries: Entries) -> Tensor:
        pi = entries.u + self.b_enc
        values, features = pi.topk(min(self.k, self.d_sae), dim=-1, sorted=False)
        return torch.zeros_like(pi).scatter(-1, features, values.relu())

    def chosen(self, pi: Tensor) -> Tensor:
        """Which entries of a batch's pre-activations ``(batch, d_sae)`` are kept: flat positions, ascending."""
        k = min(self.k, self.d_sae)
        features = torch.empty(len(pi), k, dtype=torch.long, device=pi.device)

        def choose(first: int, last: int, part: int) -> None:
            features[first:last] = pi[first:last].topk(k, dim=-1, sorted=False).indices.sort(dim=-1).values

        if pi.device.type == "cpu":
            workers.run(pi.numel(), (choose, len(pi)))
        else:
            choose(0, len(pi), 0)
        return (features + torch.arange(len(pi), device=pi.device)[:, None] * self.d_sae).flatten()

    def encode_for_loss(self, x: Tensor) -> Encoded:
        """The kept entries alone, where that is faster: all others have neither value nor gradient."""
        entries, kept = choose_entries(x, self.b_dec, self.W_enc, lambda u: self.chosen(u + self.b_enc))
        pi = entries.u + entries.per_feature(self.b_enc)
        codes = pi.relu() if kept is None else pi.relu() * kept
        return Encoded(entries, pi, codes, codes)

    def loss_terms(self, x: Tensor, encoded: Encoded, residual: Tensor, moment: Moment) -> Mapping[str, Tensor]:
        """AuxK: E||e - e_hat||^2 for the residual e = x - reconstruction and its reconstruction by dead features."""
        if moment.dead is None or not bool(moment.dead.any()):
            return {}
        dead = moment.dead.nonzero().squeeze(1)
        W_enc, W_dec = self.W_enc.index_select(1, dead), self.W_dec.index_select(0, dead)
        pi = (x - self.b_dec) @ W_enc + self.b_enc.index_select(0, dead)
        k = min(self.d_in // 2, len(dead))
        values, places = pi.topk(k, dim=-1, sorted=False)
        codes = torch.zeros_like(pi).scatter(-1, places, values.relu())
        return {"auxk": mean_square(codes @ W_dec + residual.detach())}

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "k": self.k}
