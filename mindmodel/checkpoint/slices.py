"""Slices of tensors as columns: a run on thousands of ranks has millions of them, and a few arrays hold them all.

On disk a table of slices is a safetensors file, so it is checked and mapped as the tensors themselves are.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Iterable, Iterator, Mapping, Optional, Sequence, Union, overload

import numpy as np

from mindmodel.checkpoint.blocks import Block, Shape
from mindmodel.errors import CheckpointError
from mindmodel.tensor_file import TensorFile, Written, write_tensors

SHA256_BYTES = 32
NUMBERS, SIZES = np.dtype("<i4"), np.dtype("<i8")


@dataclass(frozen=True, kw_only=True)
class Slice(Block):
    """A block of a tensor, the file that holds it under the tensor's name, and the checksum of its numbers in hex."""

    file: str
    sha256: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Slices of many tensors, a row each.

    Attributes:
        tensor, file: (rows,) numbers in lists of names that stand elsewhere.
        offset, shape: (rows, dims), with the most dims that any of the tensors has; where it has fewer, 0 follows.
        sha256: (rows, 32) bytes of the checksums.
    """

    tensor: np.ndarray
    file: np.ndarray
    offset: np.ndarray
    shape: np.ndarray
    sha256: np.ndarray

    @classmethod
    def of(cls, rows: Iterable[tuple[int, int, Block, str]]) -> Table:
        """The table of rows (number of the tensor, number of the file, block, checksum in hex)."""
        tensors, files, blocks, sums = tuple(zip(*rows)) or ((), (), (), ())
        dims = max((len(block.shape) for block in blocks), default=0)
        return cls(
            tensor=np.array(tensors, NUMBERS),
            file=np.array(files, NUMBERS),
            offset=_padded([block.offset for block in blocks], dims),
            shape=_padded([block.shape for block in blocks], dims),
            sha256=np.frombuffer(bytes.fromhex("".join(sums)), np.uint8).reshape(len(blocks), SHA256_BYTES),
        )

    @classmethod
    def joined(cls, tables: Sequence[Table]) -> Table:
        """The rows of all tables, those of a tensor together, in the order of the tables."""
        dims = max(table.offset.shape[1] for table in tables)
        parts = [table.with_dims(dims) for table in tables]
        whole = cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS})
        return whole.rows(np.argsort(whole.tensor, kind="stable"))

    def __len__(self) -> int:
        return len(self.tensor)

    def rows(self, which: Union[slice, np.ndarray]) -> Table:
        """Some of the rows."""
        return Table(**{name: getattr(self, name)[which] for name in COLUMNS})

    def with_dims(self, dims: int) -> Table:
        """The same rows with room for so many dims.

        Raises:
            ValueError: if a row needs more.
        """
        have = self.offset.shape[1]
        if have == dims:
            return self
        if self.offset[:, dims:].any() or self.shape[:, dims:].any():
            raise ValueError(f"a slice of {have} dims is one of a tensor of {dims}")
        more = ((0, 0), (0, max(0, dims - have)))
        offset, shape = (np.pad(column[:, :dims], more) for column in (self.offset, self.shape))
        return replace(self, offset=offset, shape=shape)

    def by_tensor(self, dims: Sequence[int]) -> Iterator[Table]:
        """The rows of each tensor, by number of the tensor, which must be in order; `dims` of each."""
        ends = np.searchsorted(self.tensor, np.arange(len(dims) + 1))
        return (self.rows(slice(*pair)).with_dims(count) for *pair, count in zip(ends, ends[1:], dims))

    def write(self, path: Path, metadata: Optional[Mapping[str, str]] = None) -> Written:
        """Write a safetensors file and sync it.

        Raises:
            OSError: as the system reports it.
        """
        return write_tensors(path, {name: getattr(self, name) for name in COLUMNS}, metadata)

    @classmethod
    def read(cls, file: TensorFile) -> Table:
        """The table in a safetensors file; a view of it.

        Raises:
            CheckpointError: if the columns are others.
        """
        columns = {name: file.array(name) for name in file.names}
        kinds = {name: (column.dtype.name, column.shape) for name, column in columns.items()}
        rows, dims = (*columns["offset"].shape, 0, 0)[:2] if "offset" in columns else (0, 0)
        wanted = {
            "tensor": (NUMBERS.name, (rows,)),
            "file": (NUMBERS.name, (rows,)),
            "offset": (SIZES.name, (rows, dims)),
            "shape": (SIZES.name, (rows, dims)),
            "sha256": ("uint8", (rows, SHA256_BYTES)),
        }
        if kinds != wanted:
            raise CheckpointError(f"{file.path}: not a table of slices: it has {kinds}, not {wanted}.")
        return cls(**columns)


COLUMNS = tuple(field.name for field in fields(Table))


def _padded(shapes: Sequence[Shape], dims: int) -> np.ndarray:
    return np.array([(*shape, *(0,) * (dims - len(shape))) for shape in shapes], SIZES).reshape(len(shapes), dims)


class Slices(Sequence[Slice]):
    """The slices of one tensor: rows of a table, and the names of the files that it numbers."""

    def __init__(self, table: Table, files: Sequence[str]) -> None:
        self.table, self._files = table, files

    @classmethod
    def of(cls, *slices: Slice) -> Slices:
        """Of a few that are written out."""
        files = list(dict.fromkeys(part.file for part in slices))
        return cls(Table.of((0, files.index(part.file), part, part.sha256) for part in slices), files)

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, row: int) -> Slice: ...

    @overload
    def __getitem__(self, row: slice) -> Slices: ...

    def __getitem__(self, row: Union[int, slice]) -> Union[Slice, Slices]:
        if isinstance(row, slice):
            return Slices(self.table.rows(row), self._files)
        table, row = self.table, range(len(self))[operator.index(row)]
        return Slice(
            file=self._files[table.file[row]],
            offset=tuple(table.offset[row].tolist()),
            shape=tuple(table.shape[row].tolist()),
            sha256=table.sha256[row].tobytes().hex(),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slices) and list(self) == list(other)

    def meeting(self, block: Block) -> Slices:
        """Those that share an element with a block."""
        first, end = np.array(block.offset), np.add(block.offset, block.shape)
        table = self.table
        low, high = np.maximum(table.offset, first), np.minimum(table.offset + table.shape, end)
        return Slices(table.rows((low < high).all(axis=1)), self._files)

    def numbered(self, tensor: int, files: Mapping[str, int]) -> Table:
        """The rows under another number of the tensor, and with those that the files have."""
        used, places = np.unique(self.table.file, return_inverse=True)
        file = np.array([files[self._files[number]] for number in used], NUMBERS)[places]
        return replace(self.table, tensor=np.full(len(self), tensor, NUMBERS), file=file)

    def same_numbers(self, other: Slices) -> bool:
        """Whether the blocks and their checksums are the same; the files may differ."""
        columns = ("offset", "shape", "sha256")
        return all(np.array_equal(getattr(self.table, name), getattr(other.table, name)) for name in columns)
