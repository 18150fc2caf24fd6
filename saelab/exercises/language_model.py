"""Exercises of tutorial 05: the cost of splicing an SAE into a language model, and how to read its features."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from saelab.exercises.verdicts import Mistake, exercise, expect, expect_choice, wrong
from saelab.sae.base import SparseAutoencoder
from saelab.sae.gated import GatedSAE


@exercise
def loss_recovered(answer: Callable[[float, float, float], float]) -> None:
    """``answer(clean, spliced, ablated)`` is the share of the loss that the SAE recovers, from three cross-entropies.

    Source: Rajamanoharan et al. (2024), eq. 5. It is 1 if splicing costs nothing and 0 if it is as bad as ablation.
    """
    clean, spliced, ablated = 3.0, 3.5, 8.0
    share = (ablated - spliced) / (ablated - clean)
    expect(
        "clean 3, spliced 3.5, ablated 8",
        answer(clean, spliced, ablated),
        share,
        "what should it give if spliced equals clean, and what if spliced equals ablated?",
        [
            Mistake(-share, "the size is right but the sign is not: take both differences in the same direction"),
            Mistake(1 / share, "this is upside down: an SAE that costs something recovers less than everything"),
            Mistake(1 - share, "this is the share that is lost, which is 0 for a perfect SAE"),
            Mistake(100 * share, "this is a percentage; give a share, at most 1"),
            Mistake(clean / spliced, "nothing is compared with ablation here, so no SAE could score 0"),
            Mistake(spliced / clean, "nothing is compared with ablation here, so no SAE could score 0"),
            Mistake(
                (ablated - spliced) / ablated, "a perfect SAE would not score 1 here: its loss is the clean loss, not 0"
            ),
            Mistake(ablated - spliced, "this is the nats saved; how many were there to save?"),
            Mistake(spliced - clean, "this is the nats lost; how many were there to lose?"),
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
                0.0, "an SAE can be worse than no activation at all, and the score should say so: do not clip it at 0"
            ),
            Mistake(-worse, "this rates an SAE worse than ablation as good: take no absolute values"),
        ],
    )


@exercise
def splice(answer: Callable[[Tensor, SparseAutoencoder, float], Tensor]) -> None:
    """``answer(x, sae, scale)`` is what replaces the model's own activation ``x``, ``(batch, tokens, d_in)``.

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
            "follow the units: which do the model, the SAE and the next layer use?",
            [
                Mistake(sae(scaled), "the next layer expects the model's own units, but this is in the SAE's"),
                Mistake(sae(x), "the SAE has never seen activations of this size: its units are not the model's"),
                Mistake(
                    sae(x) / scale, "the output is converted correctly, but the SAE's input was in the wrong units"
                ),
                Mistake(
                    sae(x / scale) * scale, "both conversions are the wrong way round: the SAE was trained on x * scale"
                ),
                Mistake(sae(scaled) * scale, "the scale is applied to the output again instead of being undone"),
                Mistake(
                    sae.encode(scaled), "these are codes, one number per feature; the next layer takes activations"
                ),
                Mistake(sae.encode(scaled) / scale, "these are codes; the next layer takes activations"),
                Mistake(x, "this is the unchanged activation: the SAE would have no effect on the model"),
                Mistake(x - sae(scaled) / scale, "this is the SAE's error, not its reconstruction"),
            ],
        )
    if not torch.equal(given, x):
        wrong(
            "x after the call",
            given,
            x,
            "the model's own tensor was changed in place (x *= ..., x.mul_(...)), which other hooks would see",
        )


@exercise
def top_texts(answer: Callable[[Tensor, Tensor, int], Sequence[int] | Tensor]) -> None:
    """``answer(code, text_indices, k)`` lists the texts that activate a feature most.

    ``code`` and ``text_indices`` have one entry per token. The answer has at most ``k`` texts, each once, sorted by
    their maximum code, greatest first, and leaves out texts in which the feature is never on.
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
    length = "here the length decides, not the peak"
    expect(
        "the best 3 of 6 texts",
        answer(code, texts, 3),
        [4, 1, 7],
        "take the greatest code of each text, and sort the texts by it",
        [
            Mistake([4, 4, 1], "one text appears several times: the best tokens are not yet the best texts"),
            Mistake([1, 2, 10], "these are rows of the store; text_indices says which text each belongs to"),
            Mistake([4, 7, 1], f"this looks like the mean over each text: {length}"),
            Mistake([7, 4, 1], f"this looks like the sum over each text: {length}"),
            Mistake([7, 3, 4], "this looks like the number of tokens on which it is on; use the greatest code"),
            Mistake([7, 1, 4], "the order is reversed: greatest first"),
            Mistake([3, 2, 7], "these are the texts with the smallest codes, not the greatest"),
            Mistake([0, 3, 2], "these are the texts with the smallest codes, not the greatest"),
            Mistake([5.0, 3.0, 2.0], "these are the codes; give the texts in which they occur"),
        ],
    )
    expect(
        "the best 6 of 6 texts, one of them without the feature",
        answer(code, texts, 6),
        [4, 1, 7, 2, 3],
        "leave out a text in which the feature is on for no token; the list may be shorter than k",
    )


@exercise
def mean_baseline(answer: str) -> None:
    """Whether loss recovered is higher, lower or the same against the mean activation instead of against zeros."""
    expect_choice(
        answer,
        "lower",
        {
            "higher": "which harms the model more, zeros or the average activation? The score is relative to that loss",
            "the same": "only the clean and the spliced loss stay the same; the third loss changes",
        },
    )
