"""Tensors of which only what is asked for is read, or made: blocks of a checkpoint's, of others, and what a rank holds.

Any layout loads any other: a rank reads of each file the bytes of its own blocks, whoever wrote it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Callable, Iterator, Mapping, Optional, Sequence

import numpy as np

from mindmodel.checkpoint.blocks import Block, Shape, common, whole
from mindmodel.checkpoint.index import Index, TensorEntry
from mindmodel.checkpoint.retention import Hold
from mindmodel.checkpoint.shares import Placement, held_block
from mindmodel.checkpoint.slices import Slice, Table
from mindmodel.errors import CheckpointError
from mindmodel.parallel.mesh import Mesh
from mindmodel.tensor_file import DTYPE_OF_NAME, LazyTensor, TensorFile

AHEAD = 3
"""Arrays that are fetched before they are used: between the large ones there are small ones."""


class Files:
    """The tensor files of a checkpoint; one is opened, and its header held against the index, when it is first used.

    The checkpoint is not removed before `hold` is released, or this object goes. What is in which file stands in
    arrays: a large run has millions of slices.
    """

    def __init__(self, path: Path, index: Index, hold: Hold) -> None:
        self._path, self._index, self.hold = path, index, hold
        self._open: dict[str, TensorFile] = {}
        self._numbers, self._names = {name: at for at, name in enumerate(index.files)}, tuple(index.tensors)
        tables = [entry.slices.numbered(at, self._numbers) for at, entry in enumerate(index.tensors.values())]
        tables = tables or [Table.of([])]
        files = np.concatenate([table.file for table in tables])
        order = np.argsort(files, kind="stable")
        self._ends = np.searchsorted(files[order], np.arange(len(index.files) + 1))
        self._tensors = np.concatenate([table.tensor for table in tables])[order]
        self._rows = np.concatenate([np.arange(len(table)) for table in tables])[order]

    def __getitem__(self, name: str) -> TensorFile:
        """The file of that name.

        Raises:
            CheckpointError: if it does not hold what the index says.
        """
        if name not in self._open:
            file = TensorFile(self._path / name)
            for tensor, part in self.slices_in(name):
                held = (file.shape(tensor), file.dtype(tensor).name) if tensor in file.names else None
                said = part.shape, self._index.tensors[tensor].dtype
                if held != said:
                    raise CheckpointError(
                        f"{self._path / name}: tensor '{tensor}' is {held or 'missing'}, the index says {said}."
                    )
            self._open[name] = file
        return self._open[name]

    def slices_in(self, name: str) -> Iterator[tuple[str, Slice]]:
        """What the file of that name holds, by tensor."""
        place = slice(*self._ends[self._numbers[name]:][:2])
        for at, row in zip(self._tensors[place], self._rows[place]):
            yield self._names[at], self._index.tensors[self._names[at]].slices[int(row)]


class OnDemand(Mapping[str, np.ndarray]):
    """Arrays by name; one is read, or made, when it is asked for."""

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self._shapes = shapes

    def shapes(self) -> Mapping[str, Shape]:
        """Of the arrays by name; nothing is read."""
        return self._shapes

    @abstractmethod
    def fetch(self, name: str) -> None:
        """Have at hand for a while what an array is made of, where that can be done before."""

    def __contains__(self, name: object) -> bool:
        return name in self._shapes  # Mapping's own would read the array

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


class Blocks(OnDemand):
    """Tensors of which blocks can be had."""

    @abstractmethod
    def dtypes(self) -> Mapping[str, str]:
        """NumPy's names, by the tensors'."""

    @abstractmethod
    def block(self, name: str, block: Block) -> np.ndarray:
        """A block of a tensor."""

    @abstractmethod
    def fetch(self, name: str, block: Optional[Block] = None) -> None:
        """As OnDemand, for a block; default the whole tensor."""

    def __getitem__(self, name: str) -> np.ndarray:
        return self.block(name, whole(self._shapes[name]))


class Tensors(Blocks):
    """Of a checkpoint. Arrays are read-only, and views of a file where they lie in one."""

    def __init__(self, entries: Mapping[str, TensorEntry], files: Files) -> None:
        super().__init__({name: entry.shape for name, entry in entries.items()})
        self._entries, self._files = entries, files

    def dtypes(self) -> dict[str, str]:
        """As Blocks."""
        return {name: entry.dtype for name, entry in self._entries.items()}

    def block(self, name: str, block: Block) -> np.ndarray:
        """As Blocks: a view of the file when it lies in one, else put together from its bytes."""
        parts = list(self._parts(name, block))
        if len(parts) == 1:
            ((file, here, _),) = parts
            return file.array(name)[here.place]
        found = np.empty(block.shape, DTYPE_OF_NAME[self._entries[name].dtype])
        for file, here, there in parts:
            found[there.place] = file.array(name)[here.place]
        found.flags.writeable = False
        return found

    def fetch(self, name: str, block: Optional[Block] = None) -> None:
        """As Blocks: has the system read the bytes, which it keeps in memory."""
        for file, here, _ in self._parts(name, block or whole(self._shapes[name])):
            file.fetch(name, here.place[0] if here.shape else None)

    def _parts(self, name: str, block: Block) -> Iterator[tuple[TensorFile, Block, Block]]:
        """Where a block's numbers are: a file, what it has of them there, and the same in the block."""
        for part in self._entries[name].slices.meeting(block):
            both = common(part, block)
            assert both is not None
            yield self._files[part.file], both.within(part), both.within(block)

    def entry(self, name: str) -> TensorEntry:
        """Shape, dtype and slices of a tensor."""
        return self._entries[name]

    def lazy(self, name: str) -> LazyTensor:
        """Shape and dtype of a tensor now, its numbers later."""
        entry = self._entries[name]
        return LazyTensor(shape=entry.shape, dtype=DTYPE_OF_NAME[entry.dtype], read=lambda: self[name])


class Float32Blocks(Blocks):
    """In float32 whatever they are.

    Args:
        shapes: of the tensors.
        read: gives a block of one.
        fetch: as that of Blocks.
    """

    def __init__(
        self,
        shapes: Mapping[str, Shape],
        read: Callable[[str, Block], np.ndarray],
        fetch: Callable[[str, Optional[Block]], None] = lambda name, block: None,
    ) -> None:
        super().__init__(shapes)
        self._read, self._fetch = read, fetch

    @classmethod
    def of_whole(cls, shapes: Mapping[str, Shape], read: Callable[[str], np.ndarray]) -> Float32Blocks:
        """Of tensors that are read whole, one in memory at a time."""
        return cls(shapes, lambda name, block: read(name)[block.place])

    def dtypes(self) -> Mapping[str, str]:
        """As Blocks."""
        return dict.fromkeys(self._shapes, "float32")

    def block(self, name: str, block: Block) -> np.ndarray:
        """As Blocks."""
        return np.asarray(self._read(name, block), np.float32)

    def fetch(self, name: str, block: Optional[Block] = None) -> None:
        """As Blocks."""
        self._fetch(name, block)


class HeldTensors(OnDemand):
    """Of some tensors the blocks that a rank of a mesh holds.

    Args:
        where: the tensors' origin, for the message.

    Raises:
        CheckpointError: if the tensors are not those of the layout.
        LayoutError: if the mesh does not divide a tensor.
    """

    def __init__(
        self,
        tensors: Blocks,
        placements: Mapping[str, Placement],
        mesh: Mesh,
        rank: int,
        where: str = "the checkpoint",
    ) -> None:
        wanted = {name: placement.shape for name, placement in placements.items()}
        dtypes = {name: (placements[name].dtype, dtype) for name, dtype in tensors.dtypes().items() if name in wanted}
        refuse_misfits(where, wanted, tensors.shapes(), dtypes)
        blocks = {name: held_block(placement, mesh, rank) for name, placement in placements.items()}
        self._tensors, self._blocks = tensors, {name: block for name, block in blocks.items() if block is not None}
        super().__init__({name: block.shape for name, block in self._blocks.items()})

    def __getitem__(self, name: str) -> np.ndarray:
        """The block, read-only."""
        return self._tensors.block(name, self._blocks[name])

    def fetch(self, name: str) -> None:
        """As OnDemand."""
        self._tensors.fetch(name, self._blocks[name])


def shapes_of(arrays: Mapping[str, np.ndarray]) -> Mapping[str, Shape]:
    """Of arrays by name; nothing is read for it."""
    if isinstance(arrays, OnDemand):
        return arrays.shapes()
    return {name: tuple(array.shape) for name, array in arrays.items()}


def in_turn(arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays by name, one after another; while one is used, the next ones are fetched.

    Raises:
        CheckpointError: if a file is not what the index says.
    """
    if not isinstance(arrays, OnDemand):
        yield from ((name, arrays[name]) for name in names)
        return
    with ThreadPoolExecutor(1) as reader:
        fetched = deque(reader.submit(arrays.fetch, name) for name in names[:AHEAD])
        for name, following in zip_longest(names, names[AHEAD:]):
            fetched.popleft().result()
            if following is not None:
                fetched.append(reader.submit(arrays.fetch, following))
            yield name, arrays[name]


def refuse_misfits(
    where: str,
    wanted: Mapping[str, Shape],
    found: Mapping[str, Shape],
    dtypes: Mapping[str, tuple[str, str]] = MappingProxyType({}),
) -> None:
    """Tensors must be those of a model.

    Args:
        where: their origin, for the message.
        wanted, found: shapes by name.
        dtypes: of those in both, wanted and found, where they matter.

    Raises:
        CheckpointError: if they differ; all that differs is in one message, in order of the names.
    """
    lines = [f"'{name}' is missing" for name in wanted if name not in found]
    lines += [f"'{name}' is left over" for name in found if name not in wanted]
    lines += [
        f"'{name}' is {list(found[name])}, the model has {list(wanted[name])}"
        for name in wanted.keys() & found.keys()
        if found[name] != wanted[name]
    ]
    unlike = [(name, *pair) for name, pair in dtypes.items() if pair[0] != pair[1]]
    lines += [f"'{name}' is {other}, the model has {dtype}" for name, dtype, other in unlike]
    if lines:
        text = "; ".join(sorted(lines))
        raise CheckpointError(f"{where}: does not fit this recipe's model: {text}. Use the recipe it was made with.")
