"""Exercises of tutorial 06: what a probe may see, how many dimensions codes have, and a fair baseline for them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saelab.exercises.verdicts import Mistake, exercise, expect, expect_choice

Probe = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[float, float]]


@exercise
def n_active(answer: Callable[[Tensor], int | Tensor]) -> None:
    """``answer(codes)`` is the number of features that are on for any text, from codes ``(n_texts, d_sae)``."""
    codes = torch.tensor(
        [
            [0.0, 2.0, 0.0, 1.0, 0.0, 0.0, 1e-4],
            [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 3.0, 0.0, 0.5, 0.0, 0.0, 0.0],
            [0.0, 1.0, 0.0, 0.0, 0.0, 0.9, 0.0],
            [0.0, 1.0, 0.0, 4.0, 0.0, 0.0, 0.0],
        ]
    )
    expect(
        "7 features over 5 texts",
        answer(codes),
        4,
        "a feature counts once, however many texts it is on for; look at the codes column by column",
        [
            Mistake(10 / 5, "this is L0, the mean number of features on per text; each text may have different ones"),
            Mistake(10, "this counts every nonzero code, and so some features several times"),
            Mistake(5, "this counts texts; features are along the other axis"),
            Mistake(1, "this counts features that are on for every text; one text is enough"),
            Mistake(7, "this is the width of the codes, including features that are never on"),
            Mistake(
                3, "either a weak feature is left out (any code above zero counts), or this is the maximum over texts"
            ),
            Mistake((codes > 0).any(dim=0), "this says which features; how many are there?"),
        ],
    )


@exercise
def principal_components(answer: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]) -> None:
    """``answer(train_x, test_x, k)`` is both parts in the first k principal components of the training rows.

    The components are those of ``train_x`` minus its mean; the results are ``(n_train, k)`` and ``(n_test, k)``. The
    sign of a component is arbitrary.
    """
    generator = torch.Generator().manual_seed(3)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    sizes = torch.tensor([5.0, 3.0, 1.0, 0.5, 0.3, 0.1])
    train = torch.randn(40, 6, generator=generator) * sizes @ turn + 2
    test = torch.randn(20, 6, generator=generator) * sizes.flip(0) @ turn + 4
    both = torch.cat([train, test])
    k, mean = 2, train.mean(0)

    def components(x: Tensor) -> Tensor:
        """Columns by falling variance, ``(6, 6)``."""
        directions: Tensor = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh.T
        return directions

    def parts(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b]).abs()

    own, of_all = components(train), components(both)
    scores = (train - mean) @ own
    leak = "the test rows have influenced the directions: compute them from train_x alone"
    hint = "subtract the training mean from both, and project both onto the same k directions of greatest variance"
    seen = answer(train.clone(), test.clone(), k)
    expect("number of parts returned", len(seen), 2, "return two: the training rows and the test rows")
    expect(
        "40 training and 20 test rows of width 6 in 2 components, ignoring signs",
        _rows(seen),
        parts(scores[:, :k], ((test - mean) @ own)[:, :k]),
        hint,
        [
            Mistake(parts(((train - both.mean(0)) @ of_all)[:, :k], ((test - both.mean(0)) @ of_all)[:, :k]), leak),
            Mistake(parts(((train - mean) @ of_all)[:, :k], ((test - mean) @ of_all)[:, :k]), leak),
            Mistake(
                parts(scores[:, :k], ((test - test.mean(0)) @ components(test))[:, :k]),
                "the test rows have their own components, so column 1 means different things in the two parts",
            ),
            Mistake(
                parts(scores[:, :k], ((test - test.mean(0)) @ own)[:, :k]),
                "the test rows are centred with their own mean, which hides a difference between the two sets",
            ),
            Mistake(
                parts((train @ own)[:, :k], (test @ own)[:, :k]),
                "the directions are right, but the training mean is still in the projections",
            ),
            Mistake(
                parts(*((x @ torch.linalg.svd(train, full_matrices=False).Vh.T)[:, :k] for x in (train, test))),
                "nothing has been centred: the first direction is then mostly the mean itself",
            ),
            Mistake(
                parts(*(((x - mean) @ own.flip(1))[:, :k] for x in (train, test))),
                "these are the directions of least variance (eigh sorts in ascending order)",
            ),
            Mistake(
                parts((train - mean)[:, :k], (test - mean)[:, :k]),
                "these are the first columns of x, not yet rotated to the directions of greatest variance",
            ),
            *(
                Mistake(
                    parts(scores[:, :k] / by, ((test - mean) @ own)[:, :k] / by),
                    "these are whitened, with equal variance in every component; a PCA keeps their sizes",
                )
                for by in (scores[:, :k].std(dim=0), scores[:, :k].std(dim=0, correction=0), scores[:, :k].norm(dim=0))
            ),
        ],
    )


def _rows(parts: Any) -> Tensor:
    return torch.cat([torch.as_tensor(part, dtype=torch.float32) for part in parts]).abs()


@exercise
def probe(answer: Probe) -> None:
    """``answer(train_x, train_y, test_x, test_y)``: training and test accuracy of a standardised logistic regression.

    Use ``LogisticRegression(C=0.01, max_iter=1000)`` on columns of mean 0 and variance 1; only the score may use the
    test rows. A column may be all zeros.
    """
    train_x, train_y, test_x, test_y = _leaky()
    right = _accuracies(train_x, train_y, test_x, test_y, "")
    train_accuracy, test_accuracy = right

    def mistaken(leak: str) -> tuple[float, float]:
        return _accuracies(train_x, train_y, test_x, test_y, leak)

    expect(
        "training and test accuracy where the two sets differ",
        answer(train_x.clone(), train_y.clone(), test_x.clone(), test_y.clone()),
        right,
        "compute each column's mean and variance and the regression, all from the training rows; then score both parts",
        [
            Mistake(
                mistaken("test statistics"),
                "the test rows are standardised by their own mean and variance, so a single text could not be scored",
            ),
            Mistake(
                mistaken("pooled statistics"),
                "the test rows have influenced the mean and variance that standardise the columns",
            ),
            Mistake(
                mistaken("fit on all"),
                "the regression was fitted on the test rows and their labels, so the score measures memorisation",
            ),
            Mistake(
                mistaken("everything on all"),
                "both the regression and the statistics have seen the test rows, so the score measures memorisation",
            ),
            Mistake(
                mistaken("fit on test"), "the regression was fitted on the test rows in place of the training rows"
            ),
            Mistake(
                (train_accuracy, train_accuracy),
                "both are the training accuracy; the second should be measured on texts the probe has not seen",
            ),
            Mistake(right[::-1], "the two are swapped: training accuracy first"),
            Mistake(
                mistaken("not standardised"),
                "the columns are not standardised, so the penalty keeps a column of small numbers out",
            ),
            Mistake(test_accuracy, "this is the test accuracy alone; the training accuracy comes first"),
            Mistake(
                [1 - train_accuracy, 1 - test_accuracy], "these are error rates; accuracy is the share that is right"
            ),
            Mistake([100 * train_accuracy, 100 * test_accuracy], "these are percentages; give shares, at most 1"),
        ],
    )


def _leaky() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two sets that differ as genres do: in the share of labels, by a shift, and in how much a column varies."""
    generator = torch.Generator().manual_seed(
        52
    )  # with this seed, no row is near the boundary and no two leaks look alike

    def part(n: int, share: float) -> tuple[Tensor, Tensor]:
        y = (torch.arange(n) < share * n).long()
        x = torch.randn(n, 24, generator=generator)
        x[:, 0] += 1.2 * (2 * y - 1)
        x[:, 1] = 0.01 * (x[:, 1] + 1.8 * (2 * y - 1))  # an informative column of small numbers
        x[:, 23] = 0.0
        return x, y

    (train_x, train_y), (test_x, test_y) = part(80, 0.5), part(60, 0.25)
    test_x[:, 0] += 0.8
    test_x[::6, 1] *= 12
    return train_x, train_y, test_x, test_y


def _accuracies(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, leak: str) -> tuple[float, float]:
    """Both accuracies, computed correctly or with one of the usual leaks."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    train, test = train_x.numpy(), test_x.numpy()
    both = torch.cat([train_x, test_x]).numpy()
    if leak != "not standardised":
        scaler = StandardScaler().fit(
            {"pooled statistics": both, "everything on all": both, "fit on test": test}.get(leak, train)
        )
        own = StandardScaler().fit(test) if leak == "test statistics" else scaler
        train, test, both = scaler.transform(train), own.transform(test), scaler.transform(both)
    model = LogisticRegression(C=0.01, max_iter=1000)
    if leak in ("fit on all", "everything on all"):
        model.fit(both, torch.cat([train_y, test_y]).numpy())
    elif leak == "fit on test":
        model.fit(test, test_y.numpy())
    else:
        model.fit(train, train_y.numpy())
    return float(model.score(train, train_y.numpy())), float(model.score(test, test_y.numpy()))


@exercise
def training_accuracy_on_codes(answer: str) -> None:
    """Whether training accuracy on sparse codes is higher, lower or the same as on activations."""
    expect_choice(
        answer,
        "lower",
        {
            "higher": "there are more columns, but how many of them are not all zero?",
            "the same": "compare how many numbers vary from text to text in the codes and in the activations",
        },
    )
