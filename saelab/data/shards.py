"""Columns of rows on disk that may be larger than memory: safetensors shards beside a JSON index.

A shard holds consecutive rows of every column, and its header holds a checksum for each block of each column. The index
records how the rows were made and, once the store is complete, each shard's file name and the checksum of its header.
So every byte is checked the first time it is used, and nothing is read only to be checked. Files are mapped only while
rows are copied from them, so that what was read does not stay in this process's memory.
"""

import hashlib
import json
import math
import zlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from saelab.errors import SAELabError
from saelab.files.tensor_files import write_atomically, write_tensors

FORMAT_VERSION = 1
INDEX = "index.json"
SHARD_BYTES = 2**26
"""Maximum size of the widest column in a shard."""
BLOCK_BYTES = 2**18
"""Maximum size of a block: what one checksum covers, and what is read at once when rows are drawn in shuffled order."""
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32}
"""Column types by their safetensors names."""
_AS_NUMPY = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.int16, torch.int32: np.int32}


class StoreError(SAELabError, ValueError):
    """A folder that cannot be read as an activation store; the message names the file and its fault."""


def rows_in(n_bytes: int, row_bytes: int) -> int:
    """Number of rows of ``row_bytes`` that fit into ``n_bytes``: a power of two, so that blocks divide shards."""
    return int(2 ** np.floor(np.log2(max(1, n_bytes // row_bytes))))


@dataclass(frozen=True)
class _Column:
    """Location of one column of a shard in its file."""

    dtype: torch.dtype
    row_shape: tuple[int, ...]
    start: int
    """Offset of its first byte."""
    row_bytes: int
    block_rows: int
    """Rows per block, the same in every shard; only the last block of the last shard may have fewer."""
    checksums: tuple[int, ...]
    """CRC-32 of each block."""


@dataclass(frozen=True)
class Shard:
    """One file of rows."""

    path: Path
    n_rows: int
    columns: Mapping[str, _Column]
    squares: Mapping[str, float]
    """Sum of squares of each floating-point column."""
    header_checksum: int
    """CRC-32 of everything before the rows."""

    def rows(self, column: str) -> np.ndarray:
        """The column ``(n_rows, ...)``, mapped: only parts that are read take memory, until the array is dropped."""
        where = self.columns[column]
        return np.memmap(
            self.path, _AS_NUMPY[where.dtype], mode="r", offset=where.start, shape=(self.n_rows, *where.row_shape)
        )


def open_shard(path: Path) -> Shard:
    """Read a shard's header and check that the file is complete; a `StoreError` names the file."""
    if not path.is_file():
        raise StoreError(f"{path}: this shard is missing")
    try:
        with path.open("rb") as file:
            length = file.read(8)
            header = length + file.read(int.from_bytes(length, "little"))
        fields = json.loads(header[8:])
        own = json.loads(fields.pop("__metadata__")["saelab"])
        columns = {
            name: _Column(
                DTYPES[field["dtype"]],
                tuple(field["shape"][1:]),
                len(header) + field["data_offsets"][0],
                DTYPES[field["dtype"]].itemsize * math.prod(field["shape"][1:]),
                int(own["block_rows"][name]),
                tuple(own["checksums"][name]),
            )
            for name, field in fields.items()
        }
        shard = Shard(path, int(own["n_rows"]), columns, own["squares"], zlib.crc32(header))
        end = len(header) + max(field["data_offsets"][1] for field in fields.values())
    except (ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError) as error:
        raise StoreError(f"{path}: its header cannot be read ({error!r}); harvest into a new folder") from error
    n_bytes = path.stat().st_size
    if n_bytes != end:
        raise StoreError(f"{path}: it has {n_bytes:,} bytes instead of {end:,}; harvest into a new folder")
    return shard


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a folder; raises `StoreError` if it is missing or cannot be read."""
    path = folder / INDEX
    if not path.is_file():
        raise StoreError(
            f"{folder} is not an activation store: it has no {INDEX}; make one with harvest(..., store=...)"
        )
    try:
        index: dict[str, Any] = json.loads(path.read_bytes())
        checksum, version = index.pop("checksum"), int(index["version"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path}: it cannot be read ({error!r})") from error
    if version > FORMAT_VERSION:
        raise StoreError(
            f"{path}: version {version}, but this SAELab reads up to {FORMAT_VERSION}; install a newer one"
        )
    if checksum != _checksum(index):
        raise StoreError(f"{path}: its content does not match its checksum; harvest into a new folder")
    return index


def write_index(folder: Path, index: Mapping[str, Any]) -> None:
    whole = {"version": FORMAT_VERSION, **index}
    text = json.dumps({**whole, "checksum": _checksum(whole)}, indent=1)
    write_atomically(folder / INDEX, lambda path: path.write_text(text, encoding="utf-8"))


def _checksum(index: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(index, sort_keys=True).encode())


def open_shards(folder: Path, index: Mapping[str, Any]) -> list[Shard]:
    """All shards of a complete store, in order; raises `StoreError` if one is missing, truncated or another store's."""
    shards = []
    for listed in index["shards"]:
        shard = open_shard(folder / listed["file"])
        if shard.header_checksum != listed["header_checksum"]:
            raise StoreError(f"{shard.path}: its header does not match the index; harvest into a new folder")
        shards.append(shard)
    return shards


class ShardWriter:
    """Write rows shard by shard, each atomically; continue a folder that was begun with the same recipe.

    Parameters
    ----------
    folder
        New, empty, or begun by a writer with the same ``recipe``.
    recipe
        Everything that determines the rows, as JSON.

    Raises
    ------
    FileExistsError
        The folder holds something else.
    StoreError
        The shards written so far cannot be read.
    """

    def __init__(self, folder: Path, recipe: Mapping[str, Any]) -> None:
        self._folder = folder
        self._recipe = dict(recipe)
        self.shards: list[Shard] = []
        self.is_complete = False
        if (folder / INDEX).exists():
            index = read_index(folder)
            differing = [key for key, value in self._recipe.items() if index["recipe"].get(key) != value]
            if differing:
                raise FileExistsError(
                    f"{folder} holds a harvest that differs in {', '.join(differing)}. Use another folder, or open "
                    "this store with ActivationStore.open"
                )
            self.is_complete = index["complete"]
            self.shards = open_shards(folder, index) if self.is_complete else self._begun()
        elif folder.exists() and not _is_empty(folder):
            raise FileExistsError(f"{folder} already exists and is not an activation store; name a new folder")
        self._buffers: dict[str, Tensor] = {}
        self._n_buffered = 0

    def _begun(self) -> list[Shard]:
        shards: list[Shard] = []
        while (self._folder / _file_name(len(shards))).exists():
            shards.append(open_shard(self._folder / _file_name(len(shards))))
        return shards

    @property
    def n_rows(self) -> int:
        """Number of rows on disk."""
        return sum(shard.n_rows for shard in self.shards)

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Add the next rows of every column, all of one length; the columns are those of the first call."""
        if not self._buffers:
            n_room = rows_in(SHARD_BYTES, max(_row_bytes(column) for column in rows.values()))
            self._buffers = {name: column.new_empty((n_room, *column.shape[1:])) for name, column in rows.items()}
        n, n_room = (len(next(iter(columns.values()))) for columns in (rows, self._buffers))
        done = 0
        while done < n:
            taken = min(n - done, n_room - self._n_buffered)
            for name, buffer in self._buffers.items():
                buffer[self._n_buffered : self._n_buffered + taken] = rows[name][done : done + taken]
            self._n_buffered += taken
            done += taken
            if self._n_buffered == n_room:
                self.flush()

    def flush(self) -> None:
        """Write the buffered rows as a shard; a shard that is not full must be the last."""
        if not self._n_buffered:
            return
        if not self.shards:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_index(self._folder, {"recipe": self._recipe, "complete": False, "shards": []})
        tensors = {name: buffer[: self._n_buffered] for name, buffer in self._buffers.items()}
        block_rows = {
            name: min(len(buffer), rows_in(BLOCK_BYTES, _row_bytes(buffer))) for name, buffer in self._buffers.items()
        }
        header = {
            "n_rows": self._n_buffered,
            "squares": {name: sum_of_squares(tensor) for name, tensor in tensors.items() if tensor.is_floating_point()},
            "block_rows": block_rows,
            "checksums": {name: _block_checksums(tensor, block_rows[name]) for name, tensor in tensors.items()},
        }
        path = write_tensors(self._folder / _file_name(len(self.shards)), tensors, header)
        self.shards.append(open_shard(path))
        self._n_buffered = 0

    def finish(self, **more: Any) -> None:
        """Write the remaining rows, and an index that marks the store as complete and includes ``more``."""
        self.flush()
        shards = [{"file": shard.path.name, "header_checksum": shard.header_checksum} for shard in self.shards]
        write_index(self._folder, {"recipe": self._recipe, "complete": True, "shards": shards, **more})
        self.is_complete = True


def _is_empty(folder: Path) -> bool:
    """Whether the folder holds nothing, or only the remains of a writer that was killed at its first file."""
    return folder.is_dir() and all(path.name == f".{INDEX}.unfinished" for path in folder.iterdir())


def _row_bytes(column: Tensor) -> int:
    return column.element_size() * math.prod(column.shape[1:])


def sum_of_squares(x: Tensor) -> float:
    """Sum of squares in float64, some rows at a time, as a copy of all of them could fill the memory."""
    return math.fsum(float(part.double().square().sum()) for part in torch.split(x, 4096))


def _file_name(number: int) -> str:
    return f"{number:05d}.safetensors"


def _block_checksums(tensor: Tensor, block_rows: int) -> list[int]:
    return [zlib.crc32(part.view(torch.uint8).numpy().data) for part in torch.split(tensor, block_rows)]


class StoredRows:
    """One column of a store on disk, ``(n, ...)``, indexed like a tensor; indexing reads the rows and gives a tensor.

    Activations are read as float32 and multiplied by ``scale``; integers are read as int64.

    Raises
    ------
    StoreError
        On reading rows whose bytes differ from those that were written; names the file and the column.
    """

    def __init__(self, shards: Sequence[Shard], column: str, *, scale: float = 1.0, n_rows: int | None = None) -> None:
        self._shards = list(shards)
        self._column = column
        self._scale = scale
        where = self._shards[0].columns[column]
        self._stored_as = where.dtype
        ends = list(accumulate(shard.n_rows for shard in self._shards))
        self._starts = [0, *ends[:-1]]
        n = ends[-1] if n_rows is None else n_rows
        self.shape = torch.Size((n, *where.row_shape))
        self.dtype = torch.float32 if where.dtype.is_floating_point else torch.int64
        self.row_bytes = where.row_bytes
        """Size of a row on disk."""
        self.block_rows = where.block_rows
        """Rows per block, except for the last block."""
        self._is_checked = [np.zeros(len(shard.columns[column].checksums), dtype=bool) for shard in self._shards]

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"StoredRows({self._shards[0].path.parent}, {self._column}, shape={tuple(self.shape)})"

    def first(self, n_rows: int) -> "StoredRows":
        """The first ``n_rows`` rows, still on disk."""
        return StoredRows(self._shards, self._column, scale=self._scale, n_rows=min(n_rows, len(self)))

    def __getitem__(self, index: slice | SupportsIndex | Tensor | Sequence[int]) -> Tensor:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return self.usable(self._ranges([(start, max(start, stop))]))
            index = torch.from_numpy(np.arange(start, stop, step))
        rows = torch.as_tensor(index)
        if rows.dtype == torch.bool:
            rows = rows.nonzero().flatten()
        rows = rows.cpu().long()
        if ((rows < -len(self)) | (rows >= len(self))).any():
            raise IndexError(f"{self!r} has no row {int(rows.abs().max())}")
        flat = torch.where(rows < 0, rows + len(self), rows).flatten()
        return self.usable(self._gather(flat)).reshape((*rows.shape, *self.shape[1:]))

    def _ranges(self, ranges: Sequence[tuple[int, int]]) -> Tensor:
        """Rows of each range ``(start, stop)``, in the stored type."""
        raw = np.empty((sum(stop - start for start, stop in ranges), *self.shape[1:]), _AS_NUMPY[self._stored_as])
        done = 0
        for start, stop in ranges:
            while start < stop:
                number = bisect_right(self._starts, start) - 1
                shard, first = self._shards[number], start - self._starts[number]
                last = min(shard.n_rows, stop - self._starts[number])
                self._check(number, np.arange(first // self.block_rows, -(-last // self.block_rows)))
                raw[done : done + last - first] = shard.rows(self._column)[first:last]
                done, start = done + last - first, start + last - first
        return self._tensor(raw)

    def _gather(self, rows: Tensor) -> Tensor:
        """``rows`` ``(k,)`` in any order, in the stored type."""
        raw = np.empty((len(rows), *self.shape[1:]), dtype=_AS_NUMPY[self._stored_as])
        number = torch.searchsorted(torch.tensor(self._starts), rows, right=True) - 1
        for shard in torch.unique(number).tolist():
            here = (number == shard).numpy()
            local = rows.numpy()[here] - self._starts[shard]
            self._check(shard, np.unique(local // self.block_rows))
            raw[here] = self._shards[shard].rows(self._column)[local]
        return self._tensor(raw)

    @property
    def n_blocks(self) -> int:
        return -(-len(self) // self.block_rows)

    def read_blocks(self, numbers: Sequence[int]) -> Tensor:
        """The rows of some blocks, one block after another, in the stored type; `usable` converts them."""
        return self._ranges([(k * self.block_rows, min(len(self), (k + 1) * self.block_rows)) for k in numbers])

    def block_sizes(self, numbers: Tensor) -> Tensor:
        """Number of rows in each of these blocks."""
        return (len(self) - numbers * self.block_rows).clamp(max=self.block_rows)

    def usable(self, raw: Tensor) -> Tensor:
        """Stored rows, scaled and converted to this column's `dtype`; ``raw`` may be changed in place."""
        return raw.to(self.dtype).mul_(self._scale) if self.dtype.is_floating_point else raw.to(self.dtype)

    def _tensor(self, raw: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(raw)
        return tensor.view(torch.bfloat16) if self._stored_as == torch.bfloat16 else tensor

    def _check(self, shard: int, blocks: np.ndarray) -> None:
        """Raise `StoreError` unless these blocks hold what was written; each block is checked once."""
        new = blocks[~self._is_checked[shard][blocks]]
        if not len(new):
            return
        path, rows = self._shards[shard].path, self._shards[shard].rows(self._column)
        checksums = self._shards[shard].columns[self._column].checksums
        for block in new.tolist():
            part = rows[block * self.block_rows : (block + 1) * self.block_rows]
            if zlib.crc32(np.ascontiguousarray(part).data) != checksums[block]:
                first = block * self.block_rows + self._starts[shard]
                raise StoreError(
                    f"{path}: the bytes of {self._column} in rows {first} to {first + len(part) - 1} differ from those "
                    "that were written; delete the folder and harvest again"
                )
            self._is_checked[shard][block] = True

    def fingerprint(self) -> str:
        """Identifies these rows by their checksums, without reading them."""
        known = [[shard.n_rows, shard.columns[self._column].checksums] for shard in self._shards]
        what = json.dumps([self._column, str(self._stored_as), list(self.shape), self._scale, known])
        return hashlib.blake2b(what.encode(), digest_size=16).hexdigest()
