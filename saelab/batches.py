"""Where a trainer's batches come from: rows in shuffled order, or batches that someone else makes.

A source draws the same batches again after `restore` as it would have drawn without an interruption.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from saelab.activations import ActivationStore
from saelab.autoencoders import check_activations

Activations = Tensor | ActivationStore | Iterable[Tensor]
"""What can be trained on: ``(n, d_in)``, a store, or an iterable of batches ``(batch, d_in)``."""


class Batches(ABC):
    """An endless source of batches ``(batch, d_in)``."""

    @abstractmethod
    def draw(self) -> Tensor:
        """The next batch. It may be the caller's own tensor: read it, never write to it."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What `restore` needs to go on from here."""

    @abstractmethod
    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from where ``state`` was taken, on the same activations."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Tells these activations from others, where that can be known without drawing any."""


def batches_of(activations: Activations, d_in: int, *, batch_size: int, seed: int) -> Batches:
    """The source for whatever a user trains on.

    Raises
    ------
    TypeError, ValueError
        Activations that are empty, of another width than ``d_in``, hold NaN, or are no activations at all.
    """
    x = activations.activations if isinstance(activations, ActivationStore) else activations
    if isinstance(x, Tensor):
        check_activations(x, d_in)
        if x.ndim != 2:
            raise ValueError(f"activations must be (n, d_in), not of shape {tuple(x.shape)}; try x.flatten(0, -2)")
        return ShuffledRows(x, batch_size, seed)
    if not isinstance(x, Iterable):
        raise TypeError(
            f"activations must be a torch.Tensor, an ActivationStore or an iterable of batches, not {type(x).__name__}"
        )
    return GivenBatches(x, d_in)


class ShuffledRows(Batches):
    """Rows of one tensor, without replacement, epoch by epoch."""

    def __init__(self, x: Tensor, batch_size: int, seed: int) -> None:
        self._x = x
        self._batch_size = batch_size
        self._generator = torch.Generator().manual_seed(seed)
        self._epoch = torch.empty(0, dtype=torch.long)

    def draw(self) -> Tensor:
        n = self._batch_size
        while len(self._epoch) < n:  # also right where the batch is larger than the data
            self._epoch = torch.cat([self._epoch, torch.randperm(len(self._x), generator=self._generator)])
        rows, self._epoch = self._epoch[:n], self._epoch[n:]
        return self._x.index_select(0, rows.to(self._x.device))  # thrice as fast as indexing

    def state(self) -> dict[str, Tensor]:
        return {"generator": self._generator.get_state(), "epoch": self._epoch.clone()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self._generator.set_state(state["generator"])
        self._epoch = state["epoch"]

    def fingerprint(self) -> str:
        return fingerprint(self._x)


class GivenBatches(Batches):
    """The batches of an iterable, again from its beginning when it ends. Their size is the iterable's business."""

    def __init__(self, batches: Iterable[Tensor], d_in: int) -> None:
        self._batches = batches
        self._d_in = d_in
        self._iterator: Iterator[Tensor] | None = None
        self._n_drawn = 0

    def draw(self) -> Tensor:
        x = self._next()
        check_activations(x, self._d_in)
        if x.ndim != 2:
            raise ValueError(f"a batch must be (batch, d_in), not of shape {tuple(x.shape)}; try x.flatten(0, -2)")
        return x

    def _next(self) -> Tensor:
        x = next(self._iterator, None) if self._iterator else None
        if x is None:
            self._iterator = iter(self._batches)
            x = next(self._iterator, None)
        if x is None:
            raise ValueError(
                f"the iterable of batches is at its end after {self._n_drawn} and gives none when asked again; "
                "give one that can be iterated anew (a list, a DataLoader), or take fewer steps"
            )
        self._n_drawn += 1
        return x

    def state(self) -> dict[str, Tensor]:
        return {"n_drawn": torch.tensor(self._n_drawn)}

    def restore(self, state: dict[str, Tensor]) -> None:
        for _ in range(int(state["n_drawn"])):
            self._next()

    def fingerprint(self) -> str:
        return f"iterable of width {self._d_in}"


def fingerprint(x: Tensor) -> str:
    """Hash of a tensor's shape, type and every value: the same content gives the same, on any device."""
    digest = hashlib.blake2b(f"{x.dtype}{tuple(x.shape)}".encode(), digest_size=16)
    for part in torch.split(
        x.detach(), 65536
    ):  # a piece at a time: neither a GPU's nor a mapped tensor is copied whole
        digest.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
