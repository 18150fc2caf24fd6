"""The sparse step is the dense step, in values and in gradients; a user cannot tell them apart but by the clock."""

import contextlib
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from saelab import (
    ARCHITECTURES,
    ElementwiseSAE,
    GatedSAE,
    JumpReLUSAE,
    RescaleShiftSAE,
    SAELoss,
    SparseAutoencoder,
    StandardSAE,
    Trainer,
    TrainingConfig,
)
from saelab.sae import sparse, workers
from saelab.sae.base import BatchSums

ALWAYS_SPARSE, ALWAYS_DENSE = 1.0, -1.0
DENSE_AFTER_SEARCH = 0.0  # in which one entry is too many: compiled loops then take all
COEFFICIENTS = {"l1_coefficient": 0.7, "aux_coefficient": 0.4, "l0_coefficient": 0.7}
"""Of every architecture's loss; a pass takes those of its own."""

VARIANTS: dict[str, Callable[..., ElementwiseSAE]] = {
    "standard": StandardSAE,
    "standard, norm-weighted": lambda *sizes, **rest: StandardSAE(*sizes, preset="norm_weighted", **rest),
    "gated": GatedSAE,
    "gated, norm-weighted": lambda *sizes, **rest: GatedSAE(*sizes, preset="norm_weighted", **rest),
    "gated, unfrozen decoder": lambda *sizes, **rest: GatedSAE(*sizes, ablations=["unfrozen_decoder"], **rest),
    "gated, no r_mag": lambda *sizes, **rest: GatedSAE(*sizes, ablations=["no_r_mag"], **rest),
    "gated, untied encoders": lambda *sizes, **rest: GatedSAE(*sizes, ablations=["untied_encoders"], **rest),
    "gated, no auxiliary term": lambda *sizes, **rest: GatedSAE(*sizes, ablations=["no_auxiliary"], **rest),
    "gated, untied and unfrozen": lambda *sizes, **rest: GatedSAE(
        *sizes, ablations=["untied_encoders", "unfrozen_decoder"], **rest
    ),
    "rescale-and-shift": RescaleShiftSAE,
    "jumprelu": JumpReLUSAE,
}
every_variant = pytest.mark.parametrize("name", VARIANTS)


def make_random(
    name: str, seed: int = 0, dtype: torch.dtype = torch.float64, d_in: int = 12, d_sae: int = 40, shift: float = 0.0
) -> ElementwiseSAE:
    """An SAE with every parameter random, so that no gradient vanishes by symmetry; ``shift`` moves every gate."""
    sae = VARIANTS[name](d_in, d_sae, seed=seed, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).to(dtype))
        gate_bias = "b_gate" if "b_gate" in sae.feature_parameters else "b_enc"
        sae.get_parameter(gate_bias).add_(shift)
    return sae


@contextlib.contextmanager
def path(share: float, *, screened: bool = False) -> Iterator[None]:
    """Sparse or dense passes, with or without the bfloat16 screen."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sparse, "DENSE_ABOVE", share)
        monkeypatch.setattr(sparse, "SCREENED_WORK", 0 if screened else math.inf)
        monkeypatch.setattr(sparse, "bfloat16_pays", lambda: screened)
        yield


def loss_and_gradients(
    sae: SparseAutoencoder, x: torch.Tensor, share: float, *, screened: bool = False
) -> tuple[SAELoss, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Loss; what else the pass measures; and every gradient."""
    with path(share, screened=screened):
        sae.zero_grad()
        result = sae.training_pass(x, COEFFICIENTS)
        torch.autograd.backward(result.loss.total)
    measured = {"residual": result.residual, "l0": result.l0, "fired": result.fired}
    return result.loss, measured, {name: p.grad for name, p in sae.named_parameters() if p.grad is not None}


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, relative: float, scale: float = 0.0) -> None:
    """Equal up to ``relative`` of the largest entry, or of the numbers that were added up: ``scale``."""
    largest = max(theirs.abs().max().item(), scale)
    torch.testing.assert_close(ours.to(theirs.dtype), theirs, rtol=0, atol=relative * largest + 1e-30)


ANY_STEP: dict[str, Any] = {
    "name": st.sampled_from(sorted(VARIANTS)),
    "precision": st.sampled_from(
        [(torch.float64, 1e-10, False), (torch.float32, 1e-5, False), (torch.float32, 1e-5, True)]
    ),
    "d_in": st.integers(1, 40),
    "shift": st.sampled_from([-100.0, -3.0, -1.5, 0.0, 2.0, 100.0]),
    "threshold": st.sampled_from([-0.5, 0.0, 0.8]),
    "seed": st.integers(0, 10_000),
}
"""A variant, its type with the tolerance and whether it is screened, and the rest of a step."""


@settings(max_examples=300)
@given(batch=st.integers(1, 17), d_sae=st.integers(1, 70), **ANY_STEP)
def test_sparse_and_dense_steps_agree_in_every_loss_term_and_gradient(
    name: str,
    precision: tuple[torch.dtype, float, bool],
    batch: int,
    d_in: int,
    d_sae: int,
    shift: float,
    threshold: float,
    seed: int,
) -> None:
    dtype, relative, screened = precision
    sae = make_random(name, seed, dtype, d_in, d_sae, shift)
    sae.gate_threshold = threshold
    x = torch.randn(batch, d_in, generator=torch.Generator().manual_seed(seed)).to(dtype)
    dense_loss, dense_measured, dense = loss_and_gradients(sae, x, ALWAYS_DENSE)
    sparse_loss, sparse_measured, sparse_ = loss_and_gradients(sae, x, ALWAYS_SPARSE, screened=screened)
    # A pre-activation is a sum of products, and rounds by their size and not by its own: on some CPUs it comes out
    # another in a matrix product of another shape. What hangs on it may have cancelled to far less.
    scale = float(x.norm(dim=1).max() * sae.W_enc.detach().norm(dim=0).max())
    assert sparse_loss.terms.keys() == dense_loss.terms.keys()
    assert_close(sparse_loss.total.detach(), dense_loss.total.detach(), relative, scale)
    assert_close(sparse_loss.reconstruction.detach(), dense_loss.reconstruction.detach(), relative, scale)
    for term, value in dense_loss.terms.items():
        assert_close(sparse_loss.terms[term].detach(), value.detach(), relative, scale)
    assert_close(sparse_measured["residual"], dense_measured["residual"], relative, scale)
    assert sparse_measured["l0"] == dense_measured["l0"]
    assert torch.equal(sparse_measured["fired"], dense_measured["fired"])
    assert sparse_.keys() == dense.keys()
    for parameter in dense:
        assert_close(sparse_[parameter], dense[parameter], relative, scale)


@settings(max_examples=300)
@given(
    batch=st.integers(1, 300),
    d_sae=st.integers(1, 100),
    share=st.sampled_from([1.0, 0.25]),
    dense_above=st.sampled_from([ALWAYS_SPARSE, DENSE_AFTER_SEARCH]),
    frozen=st.sampled_from([None, "W_enc", "W_dec", "b_dec"]),
    **ANY_STEP,
)
def test_a_training_step_has_the_gradients_and_sums_of_the_dense_loss(
    name: str,
    precision: tuple[torch.dtype, float, bool],
    batch: int,
    d_in: int,
    d_sae: int,
    shift: float,
    threshold: float,
    share: float,
    dense_above: float,
    frozen: str | None,
    seed: int,
) -> None:
    dtype, relative, screened = precision
    sae = make_random(name, seed, dtype, d_in, d_sae, shift)
    sae.gate_threshold = threshold
    if frozen is not None:
        sae.get_parameter(frozen).requires_grad_(False)
    x = torch.randn(batch, d_in, generator=torch.Generator().manual_seed(seed)).to(dtype)
    scale = float(x.norm(dim=1).max() * sae.W_enc.detach().norm(dim=0).max())
    with torch.no_grad():
        pi_gate = sae.gate(sae.project(x))
    # At the gate's very edge rounding decides, and the code jumps.
    assume(torch.minimum(pi_gate.abs(), (pi_gate - threshold).abs()).min() > torch.finfo(dtype).eps * scale)
    with path(ALWAYS_DENSE):
        sae.zero_grad()
        expected = sae.training_pass(x, COEFFICIENTS)
        torch.autograd.backward(share * expected.loss.total)
    sums = BatchSums.of(x, expected)
    dense = {parameter: p.grad.clone() for parameter, p in sae.named_parameters() if p.grad is not None}
    with path(dense_above, screened=screened):
        sae.zero_grad()
        passed = sae.gradient_pass(x, COEFFICIENTS, share=share)
    assert passed.sums.means[0] == pytest.approx(sums.means[0].item(), rel=1e-6)  # L0 is float32 always
    for ours, theirs in ((passed.sums.means[1:], sums.means[1:]), (passed.sums.products, sums.products)):
        assert_close(ours / batch, theirs / batch, relative, scale)
    for ours, theirs in zip(passed.sums.spread, sums.spread, strict=True):  # of x alone
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert torch.equal(passed.fired, expected.fired)
    gradients = {parameter: p.grad for parameter, p in sae.named_parameters() if p.grad is not None}
    assert gradients.keys() == dense.keys()
    for parameter, gradient in gradients.items():
        assert_close(gradient, dense[parameter], relative, scale)


@settings(max_examples=200)
@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 20),
    d_in=st.integers(1, 100),
    d_sae=st.integers(1, 100),
    magnitude=st.sampled_from([1e-20, 1e-6, 1.0, 1e6, 1e18]),
)
def test_the_bfloat16_screen_misses_no_entry(seed: int, batch: int, d_in: int, d_sae: int, magnitude: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, W = torch.randn(batch, d_in, generator=generator), torch.randn(d_in, d_sae, generator=generator) * magnitude
    limit = (x @ W).median(dim=0).values * (1 + 1e-3 * torch.randn(d_sae, generator=generator))  # many close calls
    screen = sparse.Screen(x, W, limit)
    screen.product(0, batch)
    marked = torch.from_numpy(screen.marks) > 0
    above = x.double() @ W.double() > limit.double()
    assert not (above & ~marked).any()


@pytest.mark.parametrize("broken", [math.nan, math.inf, 1e30])
def test_the_bfloat16_screen_marks_all_of_a_row_feature_or_limit_beyond_its_range(broken: float) -> None:
    x, W, limit = torch.randn(5, 8), torch.randn(8, 70), torch.full((70,), 100.0)  # which nothing else exceeds
    x[1, 3], W[2, 66], limit[7] = broken, broken, -broken
    screen = sparse.Screen(x, W, limit)
    screen.product(0, 5)
    expected = torch.zeros(5, 70, dtype=torch.bool)
    expected[1], expected[:, [66, 7]] = True, True
    assert torch.equal(torch.from_numpy(screen.marks) > 0, expected)


@every_variant
@pytest.mark.parametrize("share", [ALWAYS_SPARSE, ALWAYS_DENSE])
def test_large_operators_are_taken_in_parts_whose_gradients_add_up_to_the_whole(
    name: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "LARGE_WORK", 100)
    sae, x = make_random(name, 5), torch.randn(11, 12, dtype=torch.float64)
    whole, _, expected = loss_and_gradients(sae, x, share)
    sae.zero_grad()
    with path(share):
        passed = sae.gradient_pass(x, COEFFICIENTS, share=0.5)
    assert passed.sums.means[1].item() / len(x) == pytest.approx(whole.total.item(), rel=1e-10)
    found = {name: p.grad for name, p in sae.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for parameter, gradient in found.items():
        assert_close(2 * gradient, expected[parameter], 1e-10)


@every_variant
def test_a_pass_refuses_a_batch_of_another_shape(name: str) -> None:
    sae = VARIANTS[name](12, 40)
    for take in (sae.training_pass, sae.gradient_pass):
        with pytest.raises(ValueError, match=r"a loss takes activations \(batch, d_in\), not \(2, 3, 12\)"):
            take(torch.randn(2, 3, 12), COEFFICIENTS)
        with pytest.raises(ValueError, match="activations have width 1, but this SAE was made for d_in=12"):
            take(torch.randn(3, 1), COEFFICIENTS)


@every_variant
@pytest.mark.parametrize("share", [ALWAYS_SPARSE, ALWAYS_DENSE])
def test_gradient_with_respect_to_the_input_is_right(name: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "DENSE_ABOVE", share)
    sae, x = make_random(name, 5), torch.randn(4, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: sae.training_pass(x, COEFFICIENTS).loss.total, (x,))


@every_variant
def test_dense_path_has_the_gradients_of_plain_autograd(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one place where the dense path is not plain autograd is the reused encoder matmul."""
    sae, x = make_random(name, 3), torch.randn(9, 12, dtype=torch.float64)
    _, _, ours = loss_and_gradients(sae, x, ALWAYS_DENSE)
    monkeypatch.setattr(
        sparse.Search, "entries", lambda search: sparse.DenseEntries((x - sae.b_dec) @ sae.W_enc, x - sae.b_dec)
    )
    _, _, plain = loss_and_gradients(sae, x, ALWAYS_DENSE)
    assert ours.keys() == plain.keys()
    for parameter in plain:
        torch.testing.assert_close(ours[parameter], plain[parameter], rtol=1e-12, atol=1e-12)


@every_variant
@pytest.mark.parametrize("share", [ALWAYS_SPARSE, ALWAYS_DENSE])
def test_a_batch_with_nothing_active_still_trains_the_decoder_bias(name: str, share: float) -> None:
    sae = make_random(name, dtype=torch.float32, shift=-1e3)
    torch.nn.init.zeros_(sae.b_dec)
    loss, measured, gradients = loss_and_gradients(sae, torch.ones(5, 12), share)
    assert measured["l0"] == 0 and not measured["fired"].any()
    assert loss.reconstruction.item() == pytest.approx(12)
    if not isinstance(sae, RescaleShiftSAE):
        # Where its decoder is not frozen, the auxiliary term adds 0.4 times as much.
        expected = (
            -2.8 if name in ("gated, norm-weighted", "gated, unfrozen decoder", "gated, untied and unfrozen") else -2
        )
        assert torch.allclose(gradients["b_dec"], torch.full((12,), float(expected)))


@every_variant
def test_sparse_steps_run_without_grad_and_under_autocast_and_print_no_warning(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae, x = make_random(name, dtype=torch.float32, shift=-1.0), torch.randn(64, 12)
    for share in (ALWAYS_SPARSE, ALWAYS_DENSE):
        monkeypatch.setattr(sparse, "DENSE_ABOVE", share)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plain_loss, _, plain = loss_and_gradients(sae, x, share)
            plain = {parameter: gradient.clone() for parameter, gradient in plain.items()}
            with torch.no_grad():
                ungraded = sae.training_pass(x, COEFFICIENTS)
            assert ungraded.loss.total.item() == pytest.approx(plain_loss.total.item())
            sae.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                mixed = sae.training_pass(x, COEFFICIENTS)
            torch.autograd.backward(mixed.loss.total)
        assert mixed.loss.total.item() == pytest.approx(plain_loss.total.item(), rel=0.05)
        for parameter, gradient in plain.items():
            mixed_gradient = sae.get_parameter(parameter).grad
            assert mixed_gradient is not None and mixed_gradient.dtype == torch.float32
            assert (mixed_gradient - gradient).norm() < 0.15 * gradient.norm() + 1e-6, parameter


def test_an_sae_in_half_precision_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "DENSE_ABOVE", ALWAYS_SPARSE)
    sae, x = make_random("gated", dtype=torch.bfloat16), torch.randn(64, 12, dtype=torch.bfloat16)
    torch.autograd.backward(sae.training_pass(x, COEFFICIENTS).loss.total)
    assert sae.W_enc.grad is not None and sae.W_enc.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("screened", [False, True])
def test_density_chooses_the_path(screened: bool) -> None:
    x, W_enc = torch.randn(100, 12), torch.randn(12, 40)
    for bias, kind in ((-100.0, sparse.ActiveEntries), (100.0, sparse.DenseEntries)):
        with path(sparse.DENSE_ABOVE, screened=screened):
            found = sparse.Search(x, torch.zeros(12), W_enc, torch.full((40,), bias), floor=0.0).entries()
        assert isinstance(found, kind)


@pytest.mark.parametrize("screened", [False, True])
@pytest.mark.parametrize("name", ["gated", "gated, untied encoders"])
def test_a_step_is_dense_if_a_third_of_the_batch_has_too_many_active_entries(name: str, screened: bool) -> None:
    sae, x = make_random(name, dtype=torch.float32, shift=-3.0), torch.randn(400, 12)
    x[:133] += 5 * sae.W_enc.detach().sum(dim=1)
    with path(ALWAYS_DENSE):
        expected = sae.gradient_pass(x, COEFFICIENTS)
        dense = {parameter: p.grad for parameter, p in sae.named_parameters()}
    sae.zero_grad()
    with path(sparse.DENSE_ABOVE, screened=screened):
        assert sae._search(x).active_entries() is None
        passed = sae.gradient_pass(x, COEFFICIENTS)
    torch.testing.assert_close(passed.sums.means, expected.sums.means.to(passed.sums.means), rtol=1e-5, atol=0)
    assert torch.equal(passed.fired, expected.fired)
    for parameter, p in sae.named_parameters():
        torch.testing.assert_close(p.grad, dense[parameter], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("screened", [False, True])
@pytest.mark.parametrize("parameter", ["W_enc", "b_gate", "W_dec", "b_dec"])
def test_a_weight_that_is_not_a_number_shows_in_the_loss(parameter: str, screened: bool) -> None:
    sae, x = make_random("gated", dtype=torch.float32, shift=-1.0), torch.randn(64, 12)
    with torch.no_grad():
        weight = sae.get_parameter(parameter)
        weight[(0,) * weight.ndim] = float("nan")
    loss, _, _ = loss_and_gradients(sae, x, ALWAYS_SPARSE, screened=screened)
    assert not torch.isfinite(loss.total)
    with path(ALWAYS_SPARSE, screened=screened):
        assert not torch.isfinite(sae.gradient_pass(x, COEFFICIENTS).sums.means[1])


@pytest.mark.parametrize("dense_above", [ALWAYS_SPARSE, DENSE_AFTER_SEARCH])
def test_a_loss_that_its_type_cannot_hold_is_infinite(dense_above: float) -> None:
    sae, x = make_random("gated", dtype=torch.float32, shift=-1.0), torch.randn(64, 12)
    with path(dense_above):
        passed = sae.gradient_pass(x, {**COEFFICIENTS, "l1_coefficient": 1e200})
    assert passed.sums.means[1] == math.inf


def test_the_crossover_of_a_device_is_measured_and_one_without_sparse_kernels_stays_dense(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with torch.no_grad():  # as it is called
        measured = sparse.measured_crossover(torch.device("cpu"), 512, 64, 2048, autocast=False)
    assert 0 < measured <= 0.1  # of so many entries, two in a thousand are faster alone by far

    def unsupported(*_: object, **__: object) -> None:
        raise RuntimeError("no sparse kernels here")

    monkeypatch.setattr(sparse.Pattern, "matmul", unsupported)
    assert sparse.measured_crossover(torch.device("cpu"), 64, 16, 129, autocast=False) == -1


@pytest.mark.parametrize("n_rows", [1, 63, 64, 200, 255, 256, 1500])
def test_parts_cover_all_rows_once_and_do_not_depend_on_threads(n_rows: int, one_thread: None) -> None:
    for n_threads in (1, 2, 3):
        torch.set_num_threads(n_threads)
        done = np.zeros(n_rows, int)

        def mark(first: int, last: int, part: int, done: Any = done) -> None:
            done[first:last] += 1

        workers.run(math.inf, (mark, n_rows))
        assert (done == 1).all()


@pytest.mark.parametrize("share", [ALWAYS_SPARSE, DENSE_AFTER_SEARCH, ALWAYS_DENSE])
@pytest.mark.parametrize("name", ["gated", "jumprelu", "topk"])
def test_a_step_has_the_same_bits_for_any_number_of_threads(
    name: str, share: float, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "LARGE_WORK", 2**20)
    x, ends = torch.randn(2048, 64), []
    for n_threads in (1, 2, 3):
        torch.set_num_threads(n_threads)
        sae = ARCHITECTURES[name](64, 256)
        with path(share):
            Trainer(sae, x, TrainingConfig(n_steps=5, batch_size=512)).run(progress=False)
        ends.append(torch.cat([parameter.detach().flatten() for parameter in sae.parameters()]))
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


def test_an_error_in_one_part_reaches_the_caller_and_the_threads_live_on(one_thread: None) -> None:
    torch.set_num_threads(3)

    def fail(first: int, last: int, part: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        workers.run(math.inf, (fail, 1000))
    counted: list[int] = []
    workers.run(math.inf, (lambda first, last, part: counted.append(last - first), 1000))
    assert sum(counted) == 1000


def test_torch_has_its_threads_back_after_a_step(one_thread: None) -> None:
    torch.set_num_threads(2)
    Trainer(GatedSAE(12, 40), torch.randn(256, 12), TrainingConfig(n_steps=2, batch_size=128)).run(progress=False)
    assert torch.get_num_threads() == 2


def test_without_numba_training_gives_the_same_numbers_and_says_once_that_it_is_slower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, losses = torch.randn(512, 12, dtype=torch.float64), []
    for missing in (False, True):
        if missing:
            monkeypatch.setitem(sys.modules, "numba", None)
            workers.compiled.cache_clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sae = GatedSAE(12, 40, dtype=torch.float64)
            trainer = Trainer(sae, x, TrainingConfig(n_steps=60, batch_size=64), l1_coefficient=1.0)
            losses.append([record.loss for record in trainer.run(progress=False).records])
        said = [str(warning.message) for warning in caught if "pip install numba" in str(warning.message)]
        assert len(said) == missing
    workers.compiled.cache_clear()
    assert losses[0] == pytest.approx(losses[1], rel=1e-7)


@every_variant
def test_a_sparse_run_of_600_steps_ends_where_a_dense_run_ends(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(512, 12, dtype=torch.float64)
    ends = []
    for share in (ALWAYS_SPARSE, ALWAYS_DENSE):
        monkeypatch.setattr(sparse, "DENSE_ABOVE", share)
        sae = VARIANTS[name](12, 40, dtype=torch.float64)
        knobs: dict[str, Any] = {} if sae.sparsity_knob is None else {sae.sparsity_knob.name: 1.0}
        trainer = Trainer(sae, x, TrainingConfig(n_steps=600, batch_size=64), **knobs).run(progress=False)
        ends.append(trainer.records[-1].loss)
    assert ends[0] == pytest.approx(ends[1], rel=1e-5)
