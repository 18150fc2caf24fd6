"""An architecture as a user writes it: a class in a file of one's own, which saelab has never heard of."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from saelab import Encoded, Knob, LossTerm, Moment, SparseAutoencoder
from saelab.sae.sparse import Entries

WARMTH = Knob(
    name="warmth",
    label="Warmth",
    short="warmth",
    meaning="Weight of the penalty on losers, which falls to 0 over the training.",
    default=0.5,
    range=(0.0, 2.0),
)


class WinnersSAE(SparseAutoencoder):
    """The four largest pre-activations of each input, and a penalty on the others that anneals; no gate threshold."""

    architecture = "winners"
    feature_parameters = ("b_enc",)
    terms = (LossTerm("losers", "losers' term", WARMTH, hue="l0"),)
    n_winners = 4
    b_enc: nn.Parameter

    def activate(self, entries: Entries) -> Tensor:
        pi = (entries.u + self.b_enc).relu()
        values, features = pi.topk(self.n_winners, dim=-1)
        return torch.zeros_like(pi).scatter(-1, features, values)

    def loss_terms(self, x: Tensor, encoded: Encoded, residual: Tensor, moment: Moment) -> Mapping[str, Tensor]:
        left = max(0.0, 1 - moment.step / moment.n_steps)
        losers = (encoded.pre + self.b_enc).relu() * (encoded.codes == 0)
        return {"losers": left * encoded.entries.mean_sum(losers)}
