"""Sources of a trainer's batches: rows in shuffled order, or batches from the user's iterable.

After `restore`, a source draws the same batches as it would have drawn without interruption. If several processes train
together, each makes the same source with its own `Share`: together they draw the batches that one process would draw
alone, and no two of them read the same row.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from saelab.data.activations import ActivationStore
from saelab.data.shards import StoredRows
from saelab.errors import InputError, InputTypeError
from saelab.sae import workers
from saelab.sae.base import check_activations

Activations = Tensor | StoredRows | ActivationStore | Iterable[Tensor]
"""Training data: ``(n, d_in)``, in memory or on disk, or an iterable of batches ``(batch, d_in)``."""
POOL_BYTES = 2**26
"""Size of the pool of rows on disk that are in memory at once and shuffled among each other."""


class Share(NamedTuple):
    """Index of this process among all that train together."""

    process: int = 0
    n_processes: int = 1


class Batch(NamedTuple):
    """A batch, or this process's rows of it."""

    x: Tensor
    """``(n, d_in)``. May be the caller's own tensor, so never write to it."""
    places: Tensor
    """``(n,)``: their row numbers in the whole batch."""
    size: int
    """Number of rows in the whole batch."""


class Batches(ABC):
    """An endless source of batches."""

    @abstractmethod
    def draw(self) -> Batch:
        """The next batch."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """State for `restore` to continue from here; the same in every process."""

    @abstractmethod
    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from where ``state`` was taken, on the same activations, with any number of processes."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Identifies these activations, as far as that is possible without drawing any."""


def batches_of(
    activations: Activations,
    d_in: int,
    *,
    batch_size: int,
    seed: int,
    share: Share = Share(),  # noqa: B008 - a tuple
) -> Batches:
    """The source of batches for ``activations``.

    Raises
    ------
    TypeError, ValueError
        ``activations`` is empty, does not have width ``d_in``, holds NaN, or is of an unknown type.
    """
    x = activations.activations if isinstance(activations, ActivationStore) else activations
    if isinstance(x, StoredRows):
        check_activations(
            torch.zeros(1, x.shape[1]), d_in
        )  # checks only the width: another process may own the first row
        return ShuffledBlocks(x, batch_size, seed, share)
    if isinstance(x, Tensor):
        check_activations(x, d_in)
        if x.ndim != 2:
            raise InputError(f"activations must be (n, d_in), not of shape {tuple(x.shape)}; try x.flatten(0, -2)")
        return ShuffledRows(x, batch_size, seed, share)
    if not isinstance(x, Iterable):
        raise InputTypeError(
            f"activations must be a torch.Tensor, an ActivationStore or an iterable of batches, not {type(x).__name__}"
        )
    return GivenBatches(x, d_in, share)


class ShuffledRows(Batches):
    """Rows of a tensor in shuffled order, without replacement within an epoch."""

    def __init__(self, x: Tensor, batch_size: int, seed: int, share: Share) -> None:
        self._x = x
        self._batch_size = batch_size
        self._generator = torch.Generator().manual_seed(seed)
        self._own = slice(share.process, None, share.n_processes)
        self._places = torch.arange(batch_size)[self._own]
        self._epoch = torch.empty(0, dtype=torch.long)

    def draw(self) -> Batch:
        n = self._batch_size
        while len(self._epoch) < n:  # also right if the batch is larger than the data
            self._epoch = torch.cat([self._epoch, torch.randperm(len(self._x), generator=self._generator)])
        rows, self._epoch = self._epoch[:n], self._epoch[n:]
        return Batch(workers.take_rows(self._x, rows[self._own]), self._places, n)

    def state(self) -> dict[str, Tensor]:
        return {"generator": self._generator.get_state(), "epoch": self._epoch.clone()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self._generator.set_state(state["generator"])
        self._epoch = state["epoch"]

    def fingerprint(self) -> str:
        return fingerprint(self._x)


class ShuffledBlocks(Batches):
    """Rows on disk, without replacement within an epoch: blocks in shuffled order, with one pool of them in memory.

    The rows of a pool are shuffled among each other. Each block belongs to the same process in every epoch, and only
    that process reads it, so processes may have slightly different numbers of rows of a batch.
    """

    def __init__(self, rows: StoredRows, batch_size: int, seed: int, share: Share) -> None:
        self._rows = rows
        self._batch_size = batch_size
        self._share = share
        self._generator = torch.Generator().manual_seed(seed)
        self._pool_blocks = max(1, POOL_BYTES // (rows.block_rows * rows.row_bytes))
        self._pool = rows.read_blocks([])
        self._place = torch.empty(0, dtype=torch.long)
        """Index in ``_pool`` of each row of the pool; -1 if another process has it."""
        self._order = torch.empty(0, dtype=torch.long)
        """Remaining rows of the pool, in the order in which they are drawn."""
        self._n_drawn = 0
        """Number of rows drawn in this epoch."""
        self._begin_epoch()

    def draw(self) -> Batch:
        parts: list[Tensor] = []
        places: list[Tensor] = []
        n = 0
        while n < self._batch_size:
            if not len(self._order):
                self._read(self._shuffle_next())
            drawn, self._order = self._order[: self._batch_size - n], self._order[self._batch_size - n :]
            self._n_drawn += len(drawn)
            place = self._place[drawn]
            own = (place >= 0).nonzero().flatten()
            parts.append(workers.take_rows(self._pool, place[own]))
            places.append(own + n)
            n += len(drawn)
        return Batch(self._rows.usable(torch.cat(parts)), torch.cat(places), n)

    def _begin_epoch(self) -> None:
        self._epoch_start = self._generator.get_state()
        blocks = torch.randperm(self._rows.n_blocks, generator=self._generator)
        self._waiting = list(torch.split(blocks, self._pool_blocks))
        self._order = torch.empty(0, dtype=torch.long)
        self._n_drawn = 0

    def _shuffle_next(self) -> Tensor:
        """Shuffle the rows of the next pool, and return its blocks."""
        if not self._waiting:
            self._begin_epoch()
        blocks = self._waiting.pop(0)
        self._order = torch.randperm(int(self._rows.block_sizes(blocks).sum()), generator=self._generator)
        return blocks

    def _read(self, blocks: Tensor) -> None:
        """Read this process's rows of a pool into memory."""
        is_own = blocks % self._share.n_processes == self._share.process
        of_row = is_own.repeat_interleave(self._rows.block_sizes(blocks))
        self._place = torch.where(of_row, of_row.cumsum(0) - 1, -1)
        self._pool = self._rows.read_blocks(blocks[is_own].tolist())

    def state(self) -> dict[str, Tensor]:
        return {"epoch_start": self._epoch_start, "n_drawn": torch.tensor(self._n_drawn)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self._generator.set_state(state["epoch_start"])
        self._begin_epoch()
        n_drawn = int(state["n_drawn"])
        while self._n_drawn < n_drawn:
            blocks = self._shuffle_next()
            skipped = min(n_drawn - self._n_drawn, len(self._order))
            if skipped < len(self._order):
                self._read(blocks)
            self._order = self._order[skipped:]
            self._n_drawn += skipped

    def fingerprint(self) -> str:
        return self._rows.fingerprint()


class GivenBatches(Batches):
    """The batches of an iterable, in the sizes it gives; when it ends, it is iterated again from the beginning."""

    def __init__(self, batches: Iterable[Tensor], d_in: int, share: Share) -> None:
        self._batches = batches
        self._d_in = d_in
        self._share = share
        self._iterator: Iterator[Tensor] | None = None
        self._n_drawn = 0

    def draw(self) -> Batch:
        x = self._next()
        check_activations(x, self._d_in)
        if x.ndim != 2:
            raise InputError(f"a batch must be (batch, d_in), not of shape {tuple(x.shape)}; try x.flatten(0, -2)")
        places = slice(self._share.process, None, self._share.n_processes)
        return Batch(x[places], torch.arange(len(x))[places], len(x))

    def _next(self) -> Tensor:
        x = next(self._iterator, None) if self._iterator else None
        if x is None:
            self._iterator = iter(self._batches)
            x = next(self._iterator, None)
        if x is None:
            raise InputError(
                f"the iterable of batches ended after {self._n_drawn} and gives none when iterated again; "
                "give one that can be iterated repeatedly (a list, a DataLoader), or train for fewer steps"
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
    """Hash of a tensor's shape, dtype and values; the same on any device."""
    digest = hashlib.blake2b(f"{x.dtype}{tuple(x.shape)}".encode(), digest_size=16)
    rows = x.detach() if x.ndim else x.detach()[None]
    for part in torch.split(rows, 65536):  # in pieces, so that a tensor on a GPU is not copied all at once
        digest.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
