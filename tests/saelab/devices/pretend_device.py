"""A pretend accelerator: real values, computed on the CPU, under a GPU's rules of where tensors must lie.

`register` gives PyTorch a backend ``pretend`` with one device, which a process cannot undo: `in_child` calls it in a
process of its own. The device follows the rules of CUDA, or those of Apple's GPUs (`following`).

- Operands on different devices raise a RuntimeError, as does a CPU generator. As on a GPU, CPU tensors without
  dimensions may take part in elementwise operations, and indices may be on the CPU.
- Under the rules of MPS, float64, complex128 and sparse tensors raise.
- Everything for which the CPU waits for a GPU is counted (`counted_waits`): numbers and tensors that come back from it,
  tensors that are copied to it, and sizes that only it knows, such as that of ``nonzero``.

It says nothing about speed, rounding, or kernels that a GPU's backend lacks.
"""

import functools
import linecache
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import saelab_widgets
import torch
from torch import Tensor
from torch.utils import backend_registration

import saelab

Rules = Literal["cuda", "mps"]
DEVICE = "pretend"
SOURCES = tuple(str(Path(package.__file__).parent) for package in (saelab, saelab_widgets) if package.__file__)
aten = torch.ops.aten
COPIES = {aten.copy_, aten._to_copy}
INDEXINGS = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
"""Their second argument holds the indices."""
FILLS = {aten.fill_, aten.fill, aten.masked_fill_, aten.masked_fill}
ANSWERS = {aten._local_scalar_dense, aten.equal, aten.is_nonzero}
"""What gives a number to Python."""
UNKNOWN_SIZES = {
    aten.nonzero, aten.masked_select, aten._unique2, aten.unique_consecutive, aten.unique_dim, aten.bincount,
}  # fmt: skip
"""What gives a tensor whose size depends on values. On CUDA bincount waits twice, for the least and the greatest."""
NOT_ON_MPS = (torch.float64, torch.complex128)
_rules: Rules = "cuda"
_waits: Counter[str] = Counter()


class PretendTensor(Tensor):
    """A tensor on the pretend device; its values are a tensor on the CPU."""

    on_cpu: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "PretendTensor":
        _check_dtype(values.dtype)
        strided = values.layout == torch.strided
        wrapper = Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride() if strided else None,
            storage_offset=values.storage_offset() if strided else None,
            dtype=values.dtype,
            device=torch.device(DEVICE, 0),
        )
        wrapper.on_cpu = values
        assert isinstance(wrapper, PretendTensor)
        return wrapper

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))

    def data_ptr(self) -> int:
        return self.on_cpu.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert pretend tensor to numpy; use Tensor.cpu() to copy it to host memory first")

    def __setitem__(self, index: Any, value: Any) -> None:
        # On CUDA a number that is assigned stays on the CPU, and a mask is then filled without being counted.
        super().__setitem__(index, value if isinstance(value, Tensor) else torch.tensor(value, dtype=self.dtype))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        if id(self) not in memo:
            with torch.no_grad():
                copied: Any = PretendTensor(self.on_cpu.clone())
            is_parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(copied) if is_parameter else copied
            memo[id(self)].requires_grad_(self.requires_grad)
        copied_before: Self = memo[id(self)]
        return copied_before

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PretendTensor({self.on_cpu!r})"


class _Module:
    """``torch.pretend``: what torch asks of a device's module."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        pass

    def manual_seed_all(self, seed: int) -> None:
        pass

    def _is_in_bad_fork(self) -> bool:
        return False


@functools.cache
def register() -> None:
    """Make ``torch.device("pretend")`` a device of this process, for good."""
    backend_registration._setup_privateuseone_for_python_backend(DEVICE, backend_module=_Module())
    for name, kernel in _kernels().items():
        _library("aten").impl(name, kernel, "PrivateUse1")
    for name in ("mm", "bmm", "addmm", "matmul", "linear", "baddbmm"):
        _library("aten").impl(name, _in_half_precision(getattr(aten, name)), "AutocastPrivateUse1")
    _library("_").fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")


@functools.cache
def _library(namespace: str) -> Any:
    return torch.library.Library(namespace, "IMPL")  # type: ignore[no-untyped-call]


def _kernels() -> dict[str, Callable[..., Any]]:
    """The few operations that reach a backend without a tensor on its device, or not through the tensor's class."""

    def made(op: Any, *args: Any, dtype: Any = None, layout: Any = None, device: Any = None, **rest: Any) -> Tensor:
        rest.pop("pin_memory", None)
        return PretendTensor(op(*args, dtype=dtype, device="cpu", **rest))

    def copy_from(source: Tensor, target: PretendTensor, non_blocking: bool = False) -> Tensor:
        _note_wait("a copy from the CPU")  # of numbers that torch.tensor was given
        target.on_cpu.copy_(source)
        return target

    makers = ("empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "eye", "eye.m")
    kernels: dict[str, Callable[..., Any]] = {"_copy_from": copy_from}
    for name in makers:
        packet, _, overload = name.partition(".")
        kernels[name] = functools.partial(made, getattr(getattr(aten, packet), overload or "default"))
    return kernels


def _in_half_precision(op: Any) -> Callable[..., Any]:
    """What autocast makes of a matmul."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(DEVICE)
        half = [a.to(dtype) if isinstance(a, Tensor) and a.dtype == torch.float32 else a for a in args]
        with torch.autocast(DEVICE, enabled=False):
            return op(*half, **kwargs)

    return kernel


@contextmanager
def following(rules: Rules) -> Iterator[None]:
    """Within it, the device has the rules of CUDA or of MPS."""
    global _rules
    before, _rules = _rules, rules
    try:
        yield
    finally:
        _rules = before


@contextmanager
def counted_waits() -> Iterator[Counter[str]]:
    """Within it, each wait for the device is counted, by the line of saelab that caused it and what it was for."""
    global _waits
    before, _waits = _waits, Counter()
    try:
        yield _waits
    finally:
        _waits = before


def _note_wait(what: object, times: int = 1) -> None:
    frame = sys._getframe(1)
    while frame.f_back is not None and not frame.f_code.co_filename.startswith(SOURCES):
        frame = frame.f_back
    if frame.f_back is None:
        _waits[f"outside of saelab, or in autograd's own backward: {what}"] += times
        return
    path, line = frame.f_code.co_filename, frame.f_lineno
    place = Path(path).relative_to(Path(SOURCES[0]).parent) if path.startswith(SOURCES[0]) else Path(path).name
    _waits[f"{place}:{line}: {linecache.getline(path, line).strip()}  [{what}]"] += times


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Check and count an operation in which tensors of the device take part, and compute it on the CPU."""
    op, leaves = func.overloadpacket, list(_leaves((args, *kwargs.values())))
    to = kwargs.get("device")
    is_ours = op not in ANSWERS and (to is None or torch.device(to).type == DEVICE)
    if op in COPIES:
        is_ours = _check_copy(op, args, kwargs, is_ours)
    else:
        _check_devices(func, args, leaves)
    if is_ours and any(isinstance(leaf, torch.Generator) and leaf.device.type != DEVICE for leaf in leaves):
        raise RuntimeError(f"Expected a '{DEVICE}' device type for generator but found 'cpu' ({func})")
    if _rules == "mps" and "sparse" in str(op):
        raise NotImplementedError(f"Could not run '{func}' with arguments from the 'SparseCsrMPS' backend.")
    if op in ANSWERS or op in UNKNOWN_SIZES or (op is aten.repeat_interleave and kwargs.get("output_size") is None):
        _note_wait(op, times=2 if op is aten.bincount else 1)

    wrappers: dict[int, PretendTensor] = {}

    def unwrapped(leaf: Any) -> Any:
        if not isinstance(leaf, PretendTensor):
            return leaf
        wrappers[id(leaf.on_cpu)] = leaf
        return leaf.on_cpu

    def wrapped(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        known = wrappers.get(id(leaf))
        if known is None:
            return PretendTensor(leaf)
        if known.shape != leaf.shape:
            raise NotImplementedError(f"{func} resized a tensor in place, which the pretend device does not follow")
        return known

    args = _mapped(unwrapped, args)
    kwargs = {name: _mapped(unwrapped, value) for name, value in kwargs.items()}
    if to is not None:
        kwargs["device"] = torch.device("cpu")
    result = func(*args, **kwargs)
    return _mapped(wrapped, result) if is_ours else result


def _leaves(value: Any) -> Iterator[Any]:
    """What stands in lists and tuples, however deep."""
    if isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """The same lists and tuples with ``function`` of what stands in them; torch's own pytrees are slow."""
    if isinstance(value, list | tuple):
        return type(value)([_mapped(function, part) for part in value])
    return function(value)


def _check_copy(op: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], is_ours: bool) -> bool:
    """Count a copy between devices; whether its result is on ours."""
    if op is aten._to_copy:
        source, dtype, blocks = args[0], kwargs.get("dtype"), not kwargs.get("non_blocking", False)
    else:
        is_ours, source, dtype = isinstance(args[0], PretendTensor), args[1], args[0].dtype
        blocks = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    if isinstance(source, PretendTensor):
        _check_dtype(dtype)  # it converts before it copies
    if blocks and isinstance(source, PretendTensor) != is_ours:
        _note_wait("a copy from the CPU" if is_ours else "a copy to the CPU")
    return is_ours


def _check_dtype(dtype: torch.dtype | None) -> None:
    if _rules == "mps" and dtype in NOT_ON_MPS:
        raise TypeError(f"Cannot convert a MPS Tensor to {dtype} dtype as the MPS framework doesn't support it")


def _check_devices(func: Any, args: tuple[Any, ...], leaves: Sequence[Any]) -> None:
    """Raise where tensors of the CPU take part as they could not on a GPU; count indices that are copied or counted."""
    op = func.overloadpacket
    strangers = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, PretendTensor)]
    if op in INDEXINGS:
        if not isinstance(args[0], PretendTensor):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        indices = [index for index in args[1] if index is not None]
        strangers = [tensor for tensor in strangers if not any(tensor is index for index in indices)]
        fills = len(args) > 2 and not isinstance(args[2], PretendTensor) and args[2].numel() == 1
        for index in indices:
            if not isinstance(index, PretendTensor):
                _note_wait(f"{op} with an index on the CPU")
            elif index.dtype == torch.bool and not fills:
                _note_wait(f"{op} with a mask")
    takes_numbers = op in INDEXINGS or op in FILLS or torch.Tag.pointwise in func.tags
    for tensor in strangers:
        if tensor.ndim or not takes_numbers:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{DEVICE}:0 and cpu! (a tensor {tuple(tensor.shape)} of {tensor.dtype}, in {func})"
            )
