from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import saelab
from saelab.probing import LabelledActivations, probe


def part(n: int, d: int, seed: int, signal: float = 3.0) -> LabelledActivations:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (n,), generator=generator)
    x = torch.randn(n, d, generator=generator)
    x[:, 0] += signal * (labels - 0.5)
    return LabelledActivations(x, labels)


def test_probe_finds_a_signal_and_none_where_there_is_none() -> None:
    assert probe(part(400, 5, 0, signal=8), part(400, 5, 1, signal=8)).test_accuracy > 0.98
    assert abs(probe(part(400, 5, 0, signal=0), part(400, 5, 1, signal=0)).test_accuracy - 0.5) < 0.1


@settings(deadline=None, max_examples=10)
@given(st.floats(1e-3, 1e3), st.floats(-50, 50))
def test_probe_does_not_depend_on_a_columns_scale_or_offset(scale: float, offset: float) -> None:
    train, test = part(200, 5, 0), part(200, 5, 1)
    moved = [LabelledActivations(p.x.double() * scale + offset, p.labels) for p in (train, test)]
    assert probe(*moved).test_accuracy == pytest.approx(probe(train, test).test_accuracy, abs=0.011)


def test_test_rows_do_not_leak_into_the_scaler() -> None:
    train, test = part(200, 5, 0), part(200, 5, 1)
    far = LabelledActivations(torch.cat([test.x, torch.full((1, 5), 1e6)]), torch.cat([test.labels, test.labels[:1]]))
    alone, together = probe(train, test), probe(train, far)
    assert together.train_accuracy == alone.train_accuracy
    assert round(together.test_accuracy * 201) - round(alone.test_accuracy * 200) in (0, 1)


def test_columns_that_are_zero_throughout_are_not_counted_as_active() -> None:
    train, test = part(50, 3, 0), part(50, 3, 1)
    padded = [LabelledActivations(torch.cat([p.x, torch.zeros(50, 4)], dim=1), p.labels) for p in (train, test)]
    padded[1].x[0, 5] = 1.0  # on once, in the test part only
    assert probe(*padded).n_active == 4
    assert probe(*padded).train_accuracy == probe(train, test).train_accuracy


def test_codes_with_nothing_on_give_the_most_frequent_class() -> None:
    labels = torch.tensor([1, 1, 1, 0])
    report = probe(LabelledActivations(torch.zeros(4, 6), labels), LabelledActivations(torch.zeros(4, 6), labels))
    assert report == (0.75, 0.75, 0)


def test_wrong_parts_get_a_sentence() -> None:
    good = part(20, 3, 0)
    with pytest.raises(ValueError, match="width 3, but test has 4"):
        probe(good, part(20, 4, 1))
    with pytest.raises(ValueError, match="train has 20 rows but 19 labels"):
        probe(LabelledActivations(good.x, good.labels[:19]), good)
    with pytest.raises(ValueError, match="one class only"):
        probe(LabelledActivations(good.x, torch.ones(20)), good)
    with pytest.raises(ValueError, match="NaN"):
        probe(LabelledActivations(good.x * float("nan"), good.labels), good)


def test_sentiment_split_is_stratified_fixed_and_disjoint(model: Any) -> None:
    frame = saelab.load_sentiment().groupby(["label", "hard"]).head(20).reset_index(drop=True)
    split = saelab.sentiment_activations(
        model,
        "blocks.0.hook_resid_post",
        scale=2.0,
        snippets=frame,
        progress=False,
    )
    again = saelab.sentiment_activations(
        model,
        "blocks.0.hook_resid_post",
        scale=1.0,
        snippets=frame,
        progress=False,
    )
    assert (len(split.train.x), len(split.test.x)) == (60, 20)
    assert float(split.test.labels.double().mean()) == 0.5
    assert torch.allclose(split.train.x, 2 * again.train.x)
    rows = np.concatenate([split.train.x.numpy(), split.test.x.numpy()])
    assert len(np.unique(rows, axis=0)) == 80
