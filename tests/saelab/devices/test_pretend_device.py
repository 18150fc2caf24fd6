"""The pretend device against what CUDA and MPS are known to allow, refuse, and wait for."""

from collections.abc import Callable

import pretend_device  # type: ignore[import-not-found]
import pytest
import torch
from torch import Tensor

DEVICE = "pretend"
CUDA = pytest.mark.parametrize("rules", ["cuda"], indirect=True)
MPS = pytest.mark.parametrize("rules", ["mps"], indirect=True)


@CUDA
def test_values_are_real(rules: str) -> None:
    there = torch.tensor([[1.0, -2.0], [3.0, 4.0]], device=DEVICE, requires_grad=True)
    torch.autograd.backward((there @ there).relu().sum())
    assert there.grad is not None and there.grad.device == there.device == torch.device(DEVICE, 0)
    here = torch.tensor([[1.0, -2.0], [3.0, 4.0]], requires_grad=True)
    torch.autograd.backward((here @ here).relu().sum())
    assert there.grad.tolist() == here.grad.tolist()  # type: ignore[union-attr]
    assert torch.arange(1, 4, device=DEVICE).tolist() == [1, 2, 3]


@CUDA
def test_tensors_of_two_devices_do_not_mix_but_for_numbers_and_indices(rules: str) -> None:
    here, there = torch.ones(2, 2), torch.ones(2, 2, device=DEVICE)
    number, places = torch.tensor(2.0), torch.tensor([1, 0])
    allowed: list[Callable[[], Tensor]] = [
        lambda: there * number, lambda: number + there, lambda: torch.where(there > 0, there, number),
        lambda: there.clone().fill_(number), lambda: there[places], lambda: there[places, places.to(DEVICE)],
    ]  # fmt: skip
    refused: list[Callable[[], Tensor]] = [
        lambda: there + here, lambda: there @ here, lambda: torch.cat([there, here]),
        lambda: torch.stack([there.sum(), number]), lambda: here[places.to(DEVICE)],
        lambda: there.index_select(0, places), lambda: here.add_(there),
        lambda: torch.randn(2, device=DEVICE, generator=torch.Generator()),
        lambda: torch.multinomial(there, 1, generator=torch.Generator()),
    ]  # fmt: skip
    for number_of, allow in enumerate(allowed):
        assert allow().device.type == DEVICE, number_of
    for number_of, refuse in enumerate(refused):
        with pytest.raises(RuntimeError, match=r"same device|'pretend' device type for generator"):
            print(number_of, refuse())
    with pytest.raises(TypeError, match="can't convert pretend tensor to numpy"):
        there.numpy()


@CUDA
def test_waits_are_counted_and_other_work_is_not(rules: str) -> None:
    x = torch.arange(6.0, device=DEVICE)
    waiting: list[Callable[[], object]] = [
        x.sum().item, x.tolist, x.cpu, x.nonzero, lambda: x[x > 2], lambda: bool(x.any()), lambda: x.equal(x),
        lambda: torch.ones(2).to(DEVICE), lambda: torch.tensor([1.0], device=DEVICE), lambda: x[torch.tensor([0])],
        x.unique, lambda: x.long().repeat_interleave(x.long()),
        lambda: x.clone().__setitem__(x > 2, x[:3]), lambda: x.__setitem__(0, 0.0),
    ]  # fmt: skip
    for number, wait in enumerate(waiting):
        with pretend_device.counted_waits() as waits:
            wait()
        assert waits.total() == 1, (number, waits)
    with pretend_device.counted_waits() as waits:
        torch.bincount(x.long())
    assert waits.total() == 2  # for the least and the greatest value
    with pretend_device.counted_waits() as waits:
        y = (x * 2).relu().index_select(0, x.long()).topk(2).values.sum()
        x[x > 4] = 0
        x[:1] = 1.0
        x.long().repeat_interleave(x.long(), output_size=11)
        torch.ones(2).to(DEVICE, non_blocking=True)
        torch.zeros(3, device=DEVICE)
    assert not waits, waits
    assert y.item() == 18 and x.tolist() == [1, 1, 2, 3, 4, 0]


@MPS
def test_under_the_rules_of_mps_there_is_neither_float64_nor_a_sparse_tensor(rules: str) -> None:
    x = torch.ones(1, device=DEVICE)
    refused: list[Callable[[], object]] = [
        x.double, lambda: torch.zeros(1, dtype=torch.float64, device=DEVICE),
        lambda: torch.ones(1, dtype=torch.float64).to(DEVICE), lambda: x.sum(dtype=torch.float64),
        lambda: x.to("cpu", torch.float64), lambda: torch.zeros(1, dtype=torch.float64).copy_(x),
    ]  # fmt: skip
    for refuse in refused:
        with pytest.raises(TypeError, match="MPS framework doesn't support"):
            refuse()
    assert x.cpu().double().item() == 1
    with pytest.raises(NotImplementedError, match="SparseCsrMPS"):
        torch.sparse_csr_tensor(torch.tensor([0, 1], device=DEVICE), torch.tensor([0], device=DEVICE), x, (1, 1))
