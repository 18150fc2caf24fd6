"""Exercises of tutorial 05: what splicing an SAE into a language model costs, and how its features are read."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from saelab.exercises.verdicts import Mistake, exercise, expect, expect_choice, wrong
from saelab.sae.base import SparseAutoencoder
from saelab.sae.gated import GatedSAE


@exercise
def loss_recovered(answer: Callable[[float, float, float], float]) -> None:
    """``answer(clean, spliced, ablated)``: the share of the loss that the SAE recovers, of three cross-entropies.

    Source: Rajamanoharan et al. (2024), section 4; 1 where splicing costs nothing, 0 where it is as bad as ablation.
    """
    clean, spliced, ablated = 3.0, 3.5, 8.0
    share = (ablated - spliced) / (ablated - clean)
    expect(
        "clean 3, spliced 3.5, ablated 8",
        answer(clean, spliced, ablated),
        share,
        "which number should it give where spliced equals clean, and which where spliced equals ablated?",
        [
            Mistake(-share, "the size is right, the sign is not: both differences have to be taken the same way round"),
            Mistake(1 / share, "this is upside down: an SAE that costs something recovers less than everything"),
            Mistake(1 - share, "this is the share that is lost, 0 for a perfect SAE"),
            Mistake(100 * share, "these are percent; give a share, at most 1"),
            Mistake(clean / spliced, "nothing is compared with ablation here, so no SAE could score 0"),
            Mistake(spliced / clean, "nothing is compared with ablation here, so no SAE could score 0"),
            Mistake(
                (ablated - spliced) / ablated, "a perfect SAE would not score 1 here: the clean loss is its best, not 0"
            ),
            Mistake(ablated - spliced, "this is nats saved; how many were there to save?"),
            Mistake(spliced - clean, "this is nats lost; how many were there to lose?"),
        ],
    )
    worse = (ablated - 9.0) / (ablated - clean)
    expect(
        "clean 3, spliced 9, ablated 8",
        answer(clean, 9.0, ablated),
        worse,
        "try a spliced loss above the ablated one",
        [
            Mistake(
                0.0, "an SAE can be worse than no activation at all, and the score should say so: do not cut it at 0"
            ),
            Mistake(-worse, "an SAE worse than ablation came out as good: no absolute values"),
        ],
    )


@exercise
def splice(answer: Callable[[Tensor, SparseAutoencoder, float], Tensor]) -> None:
    """``answer(x, sae, scale)``: what the model goes on with in place of its own x, ``(batch, tokens, d_in)``.

    ``sae`` was trained on activations times ``scale``.
    """
    generator = torch.Generator().manual_seed(0)
    sae, scale = GatedSAE(6, 9), 4.0
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        x = torch.randn(2, 3, 6, generator=generator)
        given = x.clone()
        seen = answer(given, sae, scale)
        scaled = x * scale
        expect(
            "activations (2, 3, 6) at scale 4",
            seen,
            sae(scaled) / scale,
            "follow the units: which does the model hold, which does the SAE know, and which does the next layer want?",
            [
                Mistake(sae(scaled), "the next layer expects the model's own units, and this is in those of the SAE"),
                Mistake(sae(x), "the SAE has never seen activations of this size: its units are not the model's"),
                Mistake(sae(x) / scale, "on the way out the units are right, but what went into the SAE had the wrong"),
                Mistake(
                    sae(x / scale) * scale, "both ways are the wrong way round: x * scale is what the SAE has seen"
                ),
                Mistake(sae(scaled) * scale, "on the way out, the scale has been applied once more in place of undone"),
                Mistake(sae.encode(scaled), "these are codes, one number a feature; the next layer takes activations"),
                Mistake(sae.encode(scaled) / scale, "these are codes; the next layer takes activations"),
                Mistake(x, "this is the activation as it was: the model would not notice any SAE"),
                Mistake(x - sae(scaled) / scale, "this is what the SAE misses, not what it gives"),
            ],
        )
    if not torch.equal(given, x):
        wrong(
            "x after the call",
            given,
            x,
            "the model's own tensor has been changed in place (x *= ..., x.mul_(...)): other hooks would see that",
        )


@exercise
def top_texts(answer: Callable[[Tensor, Tensor, int], Sequence[int] | Tensor]) -> None:
    """``answer(code, text_indices, k)``: the texts in which a feature is most on.

    ``code`` and ``text_indices`` have one entry a token; asked for are at most ``k`` texts, each once, by their
    greatest code, greatest first, and none in which the feature is off throughout.
    """
    codes_of: dict[int, list[float]] = {
        4: [0, 5, 4.5, 0],
        7: [2, 2, 2, 2, 2],
        1: [0, 3],
        0: [0, 0],
        3: [0.1, 0.1, 0.1],
        2: [0, 1],
    }
    code = torch.tensor([code for codes in codes_of.values() for code in codes])
    texts = torch.tensor([text for text, codes in codes_of.items() for _ in codes])
    length = "length decides here, and not the peak"
    expect(
        "the best 3 of 6 texts",
        answer(code, texts, 3),
        [4, 1, 7],
        "of each text take its greatest code first, and sort the texts by it",
        [
            Mistake([4, 4, 1], "one text fills several places: the best tokens are not yet the best texts"),
            Mistake([1, 2, 10], "these are rows of the store; text_indices says to which text each belongs"),
            Mistake([4, 7, 1], f"this looks like the mean over each text: {length}"),
            Mistake([7, 4, 1], f"this looks like the sum over each text: {length}"),
            Mistake(
                [7, 3, 4], "this looks like the number of tokens on which it is on; asked for is the greatest code"
            ),
            Mistake([7, 1, 4], "the order is the other way round: greatest first"),
            Mistake([3, 2, 7], "these are the texts with the least, not with the greatest"),
            Mistake([0, 3, 2], "these are the texts with the least, not with the greatest"),
            Mistake([5.0, 3.0, 2.0], "these are the codes; asked for is in which texts they are"),
        ],
    )
    expect(
        "the best 6 of 6 texts, one of them without the feature",
        answer(code, texts, 6),
        [4, 1, 7, 2, 3],
        "a text in which the feature is on for no token shows nothing of it; the list may be shorter than k",
    )


@exercise
def mean_baseline(answer: str) -> None:
    """Whether loss recovered against the mean activation is higher than against zeros, lower, or the same."""
    expect_choice(
        answer,
        "lower",
        {
            "higher": "which does the model more harm, zeros or the average activation? The score compares with it",
            "the same": "only the clean and the spliced loss stay as they are; the third loss is another",
        },
    )
