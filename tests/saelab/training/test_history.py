"""FVU and gamma in the trainer's history are those of float64 sums, wherever the mean of the activations lies."""

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab import ARCHITECTURES, FVU, SparseAutoencoder, StandardSAE, Trainer, TrainingConfig, evaluate
from saelab.sae import sparse, workers
from saelab.sae.base import BatchSums
from saelab.sae.thresholds import threshold_curves
from saelab.training.runs import TrainingRecord

WIDTH = 8
PATHS = {"sparse": (1.0, True), "dense": (0.0, True), "autograd": (0.2, False)}
"""How a step is taken: the share of active entries above which all are, and whether loops are compiled."""
every_path = pytest.mark.parametrize("path", PATHS)


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def take(path: str) -> None:
        share, compiles = PATHS[path]
        monkeypatch.setattr(sparse, "DENSE_ABOVE", share)
        if not compiles:
            monkeypatch.setattr(workers, "compiled", lambda: None)

    return take


def normal(n: int, mean: float, sd: float = 1.0, seed: int = 0) -> torch.Tensor:
    """``(n, WIDTH)``, float32; their mean is that far from zero in every column, in turn above it and below."""
    signs = 1 - 2 * (torch.arange(WIDTH) % 2)
    return mean * signs + sd * torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed))


def halving(x: torch.Tensor, share: float = 0.5, *, about: torch.Tensor | None = None) -> StandardSAE:
    """An SAE with ``share * relu(x - about)`` as reconstruction of ``x - about``; each feature is one column."""
    sae = StandardSAE(WIDTH, WIDTH, dtype=x.dtype)
    with torch.no_grad():
        sae.W_dec.copy_(torch.eye(WIDTH))
        sae.W_enc.copy_(share * torch.eye(WIDTH))
        if about is not None:
            sae.b_dec.copy_(about)
    return sae


def exact(x: torch.Tensor, share: float, about: torch.Tensor) -> tuple[float, float]:
    """FVU and gamma of `halving`, in float64, from vectors instead of sums of squares."""
    wide, centre = x.double(), about.double()
    r = centre + share * (wide - centre).relu()
    variance = (wide - wide.mean(dim=0)).square().sum()
    return float((wide - r).square().sum() / variance), float(r.square().sum() / (wide * r).sum())


def first_record(sae: SparseAutoencoder, x: torch.Tensor) -> tuple[float, float]:
    trainer = Trainer(sae, x, TrainingConfig(n_steps=1, batch_size=len(x)))
    measured = trainer.measure(x)
    record = trainer.step()
    assert (measured.fvu, measured.gamma) == pytest.approx((record.fvu, record.gamma), rel=1e-6, nan_ok=True)
    return record.fvu, record.gamma


@every_path
@pytest.mark.parametrize("mean", [0.0, 300.0, 3000.0, 1e4])
def test_fvu_and_gamma_do_not_depend_on_how_far_the_mean_is(
    path: str, mean: float, take: Callable[[str], None]
) -> None:
    take(path)
    x = normal(600, mean)
    about = x.mean(dim=0)
    fvu, gamma = exact(x, 0.5, about)
    assert 0.6 < fvu < 0.65  # half of the positive deviations is left, and all of the negative ones
    assert first_record(halving(x, about=about), x) == pytest.approx((fvu, gamma), rel=1e-6)
    metrics = evaluate(halving(x, about=about), x, batch_size=100)
    assert (metrics.fvu, metrics.gamma) == pytest.approx((fvu, gamma), rel=1e-4)  # of float32 reconstructions


@every_path
@pytest.mark.parametrize("mean", [0.0, 300.0, 3000.0])
def test_where_nothing_is_on_gamma_is_that_of_the_decoders_bias(
    path: str, mean: float, take: Callable[[str], None]
) -> None:
    take(path)
    x = normal(600, mean)
    sae = halving(x, 0.0, about=1e-3 * torch.tensor([-2.0] + 7 * [1.0]))
    b = sae.b_dec.detach().double()
    expected = 600 * float(b.dot(b) / (x.double() @ b).sum())
    assert abs(expected) < 1
    assert evaluate(sae, x).gamma == pytest.approx(expected, rel=1e-9)
    assert first_record(sae, x)[1] == pytest.approx(expected, rel=1e-9)


@every_path
def test_equal_activations_have_no_fvu_anywhere(path: str, take: Callable[[str], None]) -> None:
    take(path)
    for value in (0.1, 7.7, 3000.0):
        x = torch.full((300, WIDTH), value)
        sae = halving(x)
        assert math.isnan(evaluate(sae, x, batch_size=7).fvu)
        assert threshold_curves(sae, x, [0.0, 1.0]).fvu.isna().all()
        assert math.isnan(first_record(sae, x)[0])


@every_path
def test_where_nothing_is_reconstructed_there_is_no_gamma(path: str, take: Callable[[str], None]) -> None:
    take(path)
    x = normal(300, 1.0)
    sae = halving(x, 0.0)
    assert math.isnan(evaluate(sae, x).gamma) and threshold_curves(sae, x, [0.0]).gamma.isna().all()
    assert math.isnan(first_record(sae, x)[1])


@settings(max_examples=60, deadline=None)
@given(
    path=st.sampled_from(sorted(PATHS)),
    n=st.integers(2, 400),
    mean=st.sampled_from([0.0, 1.0, -30.0, 1e3, 1e4]),
    centred=st.booleans(),
    share=st.sampled_from([0.0, 0.5, 0.9]),
    outlier=st.sampled_from([0.0, 1e3]),
    seed=st.integers(0, 1000),
)
def test_the_history_is_what_float64_gives(
    path: str, n: int, mean: float, centred: bool, share: float, outlier: float, seed: int
) -> None:
    x = normal(n, mean, seed=seed)
    x[0] += outlier
    about = mean * torch.sign(x[-1]) if centred else torch.full((WIDTH,), 0.01)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sparse, "DENSE_ABOVE", PATHS[path][0])
        if not PATHS[path][1]:
            monkeypatch.setattr(workers, "compiled", lambda: None)
        found = first_record(halving(x, share, about=about), x)
    assert found == pytest.approx(exact(x, share, about), rel=1e-6)


@pytest.mark.parametrize("make", ARCHITECTURES.values())
def test_the_sums_of_a_pass_are_those_of_its_vectors_compiled_or_not(
    make: type[SparseAutoencoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    sae, x = make(WIDTH, 32), normal(500, 1e4)
    result = sae.training_pass(x, dict.fromkeys(sae.knobs(), 1.0))
    wide, r, e = x.double(), result.reconstruction.double(), result.residual.double()
    products = [float((one * other).sum()) for one, other in ((r, r), (wide, r), (e, e))]
    variance = float((wide - wide.mean(dim=0)).square().sum(dim=1).mean())
    for compiled in (True, False):
        if not compiled:
            monkeypatch.setattr(workers, "compiled", lambda: None)
        parts = [
            BatchSums.of(x[rows], result._replace(reconstruction=r[rows].float(), residual=e[rows].float()))
            for rows in (slice(0, 1), slice(1, 200), slice(200, 500))
        ]
        for sums in (BatchSums.of(x, result), BatchSums.added(parts)):
            assert sums.products.tolist() == pytest.approx(products, rel=1e-12)
            assert float(sums.spread.variance) == pytest.approx(variance, rel=1e-12)


def test_a_mean_of_ten_million_times_the_spread_costs_no_digit_that_counts() -> None:
    z, noise = torch.randn(2, 500, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = 1e4 + 1e-3 * z
    metric = FVU()
    for part, near in zip(x.split(64), (x + 1e-4 * noise).split(64), strict=True):
        metric.add_batch(part, near)
    assert metric.compute() == pytest.approx(
        float(0.01 * noise.square().sum() / (z - z.mean(0)).square().sum()), rel=1e-6
    )
    sae = halving(x, about=x.mean(dim=0))
    expected = pytest.approx(exact(x, 0.5, sae.b_dec.detach())[0], rel=1e-6)
    assert evaluate(sae, x, batch_size=64).fvu == expected
    assert threshold_curves(sae, x, [0.0]).fvu.iloc[0] == expected
    assert first_record(sae, x)[0] == expected


def test_threshold_curves_are_those_of_evaluate_far_from_zero() -> None:
    x = normal(300, 1e4).double()
    sae = halving(x, 0.999, about=x.min(dim=0).values)
    curves = threshold_curves(sae, x, [0.0, 1.0, 3.0])
    found = []
    for threshold in (0.0, 1.0, 3.0):
        sae.gate_threshold = threshold
        found.append(evaluate(sae, x).fvu)
    assert found[0] < 1e-5
    assert np.allclose(curves.fvu, found, rtol=1e-9, atol=0)


class Accelerator:
    """As much of accelerate's as a trainer asks of, for several processes that are threads of this one."""

    device = torch.device("cpu")

    def __init__(self, index: int, places: list[Any], barrier: threading.Barrier) -> None:
        self.process_index, self.num_processes, self.is_main_process = index, len(places), index == 0
        self._places, self._barrier = places, barrier

    def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "sum"
        self._places[self.process_index] = tensor
        self._barrier.wait(timeout=30)
        total = torch.stack(self._places).sum(dim=0)
        self._barrier.wait(timeout=30)
        return total


@every_path
@pytest.mark.parametrize("batch_size", [2, 100])  # in one of three processes no row, or about as many in each
def test_several_processes_have_the_history_of_one(path: str, batch_size: int, take: Callable[[str], None]) -> None:
    take(path)
    x = normal(300, 1e4)
    about = x.mean(dim=0)
    config = TrainingConfig(n_steps=1, batch_size=batch_size)
    one = Trainer(halving(x, about=about), x, config).step()
    places: list[Any] = 3 * [None]
    barrier = threading.Barrier(3)

    def trained(index: int) -> TrainingRecord:
        accelerator: Any = Accelerator(index, places, barrier)
        return Trainer(halving(x, about=about), x, config, accelerator=accelerator).step()

    with ThreadPoolExecutor(3) as pool:
        records = list(pool.map(trained, range(3)))
    assert math.isfinite(one.fvu)
    for record in records:
        assert (record.fvu, record.gamma) == pytest.approx((one.fvu, one.gamma), rel=1e-9)
