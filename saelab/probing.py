"""Linear probes: is a label still readable from activations, or from an SAE's codes?"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saelab.activations import harvest_pooled
from saelab.autoencoders import check_activations

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

SENTIMENT_PROMPT = " Overall, this movie was"
"""Appended to a snippet, so that its last token is one at which the model is about to say what it thinks."""


class LabelledActivations(NamedTuple):
    """Inputs of a probe with their labels."""

    x: Tensor
    """``(n, d)``: activations or codes."""
    labels: Tensor
    """``(n,)``: one class a row."""


class SentimentSplit(NamedTuple):
    """The sentiment set, ready to probe: one activation a snippet, split once and for all."""

    train: LabelledActivations
    test: LabelledActivations


class ProbeReport(NamedTuple):
    """What `probe` found."""

    train_accuracy: float
    test_accuracy: float
    n_active: int
    """Columns that are not zero throughout the whole set: for codes, the features that are on at all."""


def probe(train: LabelledActivations, test: LabelledActivations, *, C: float = 0.01) -> ProbeReport:
    """Accuracy of a standardised logistic regression; scaler and weights see the training part only.

    Parameters
    ----------
    train, test
        ``(x, labels)`` each; ``x`` of shape ``(n, d)``.
    C
        Inverse strength of its L2 penalty, scikit-learn's; the default is a strong one, right for ~1,000 rows.

    Raises
    ------
    TypeError, ValueError
        Parts that are empty, of different widths, or hold NaN; labels that are not one a row, or of one class only.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test = LabelledActivations(*train), LabelledActivations(*test)
    for name, part in (("train", train), ("test", test)):
        check_activations(part.x)
        if len(part.labels) != len(part.x):
            raise ValueError(f"{name} has {len(part.x)} rows but {len(part.labels)} labels; give one label a row")
    if train.x.shape[1] != test.x.shape[1]:
        raise ValueError(f"train has width {train.x.shape[1]}, but test has {test.x.shape[1]}; use one representation")
    if len(torch.unique(train.labels)) < 2:
        raise ValueError("the training labels hold one class only; a probe needs at least two")
    (x, y), (x_test, y_test) = ((part.x.detach().cpu().numpy(), part.labels.cpu().numpy()) for part in (train, test))
    on_in_train = (x != 0).any(axis=0)
    n_active = int((on_in_train | (x_test != 0).any(axis=0)).sum())
    if not on_in_train.any():  # nothing to learn from: the probe is the most frequent class
        most_frequent = np.bincount(y).argmax()
        return ProbeReport(float((y == most_frequent).mean()), float((y_test == most_frequent).mean()), n_active)
    # A column that is zero throughout training gets weight zero anyway: leave it out, for speed.
    x, x_test = x[:, on_in_train], x_test[:, on_in_train]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000)).fit(x, y)
    return ProbeReport(float(model.score(x, y)), float(model.score(x_test, y_test)), n_active)


def sentiment_activations(
    model: "TransformerBridge",
    hook: str,
    *,
    scale: float,
    snippets: "pd.DataFrame | None" = None,
    test_size: float = 0.25,
    seed: int = 0,
    progress: bool = True,
) -> SentimentSplit:
    """The sentiment set at ``hook``: the activation at the last token of each snippet + `SENTIMENT_PROMPT`.

    Split with the labels and the hard snippets in equal shares; ``scale`` is that of the store the SAE was trained on.
    ``snippets`` defaults to `saelab.load_sentiment()`; it needs the columns ``text``, ``label`` and ``hard``.
    """
    from sklearn.model_selection import train_test_split

    from saelab.language_models import load_sentiment

    frame = load_sentiment() if snippets is None else snippets
    x = harvest_pooled(model, hook, list(frame.text + SENTIMENT_PROMPT), scale=scale, progress=progress)
    labels = torch.tensor(frame.label.to_numpy())
    strata = frame.label.astype(str) + frame.hard.astype(str)
    train, test = train_test_split(np.arange(len(frame)), test_size=test_size, random_state=seed, stratify=strata)
    return SentimentSplit(LabelledActivations(x[train], labels[train]), LabelledActivations(x[test], labels[test]))
