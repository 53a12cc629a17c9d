"""Loading: a checkpoint is checked against its index before a number of it is used; a damaged one is passed over.

Any layout loads any other: a rank reads of each file the bytes of its own blocks, whoever wrote it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Callable, Iterator, Mapping, Optional, Protocol, Sequence

import numpy as np

from mindmodel.checkpoint.blocks import Block, Shape, common, whole
from mindmodel.checkpoint.index import Index, TensorEntry
from mindmodel.checkpoint.retention import Hold, step_numbers
from mindmodel.checkpoint.save import OPTIMIZER, WEIGHTS
from mindmodel.checkpoint.shares import Placement, held_block
from mindmodel.checkpoint.slices import Slice
from mindmodel.errors import CheckpointError
from mindmodel.files import file_inside
from mindmodel.machine import usable_cores
from mindmodel.parallel.mesh import Mesh
from mindmodel.tensor_file import DTYPE_OF_NAME, LazyTensor, TensorFile

BATCH_BYTES = 64 * 2**20
"""What a thread verifies at a time, or a tensor where that is more."""


class Contents:
    """What each file of a checkpoint holds, in arrays: a large run has millions of slices."""

    def __init__(self, index: Index) -> None:
        self._numbers, self._names = {name: at for at, name in enumerate(index.files)}, tuple(index.tensors)
        self._index = index
        tables = [entry.slices.numbered(at, self._numbers) for at, entry in enumerate(index.tensors.values())]
        files = np.concatenate([table.file for table in tables] or [np.zeros(0, int)])
        order = np.argsort(files, kind="stable")
        self._ends = np.searchsorted(files[order], np.arange(len(index.files) + 1))
        self._tensors = np.concatenate([table.tensor for table in tables] or [np.zeros(0, int)])[order]
        self._rows = np.concatenate([np.arange(len(table)) for table in tables] or [np.zeros(0, int)])[order]

    def of(self, file: str) -> Iterator[tuple[str, Slice]]:
        """Tensor by tensor, the slice of it."""
        place = slice(*self._ends[self._numbers[file]:][:2])
        for at, row in zip(self._tensors[place], self._rows[place]):
            yield self._names[at], self._index.tensors[self._names[at]].slices[int(row)]


class Files:
    """The tensor files of a checkpoint; one is opened, and its header held against the index, when it is first used.

    The checkpoint is not removed before `hold` is released, or this object goes.
    """

    def __init__(self, path: Path, index: Index, hold: Hold) -> None:
        self._path, self._index, self.hold = path, index, hold
        self._open: dict[str, TensorFile] = {}
        self._contents = Contents(index)

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
        return self._contents.of(name)


class Tensors(Mapping[str, np.ndarray]):
    """Tensors by name; the numbers are read when a tensor is asked for."""

    def __init__(self, entries: Mapping[str, TensorEntry], files: Files) -> None:
        self._entries, self._files = entries, files

    def __getitem__(self, name: str) -> np.ndarray:
        """The tensor, read-only; a view of the file when it lies there whole."""
        return self.block(name, whole(self._entries[name].shape))

    def block(self, name: str, block: Block) -> np.ndarray:
        """A block of a tensor, read-only: a view of the file when it lies in one, else put together from its bytes."""
        entry = self._entries[name]
        meeting = entry.slices if len(entry.slices) == 1 else entry.slices.meeting(block)
        if len(meeting) == 1:
            (part,) = meeting
            return self._files[part.file].array(name)[block.within(part).place]
        found = np.empty(block.shape, DTYPE_OF_NAME[entry.dtype])
        for part in meeting:
            both = common(part, block)
            assert both is not None
            found[both.within(block).place] = self._files[part.file].array(name)[both.within(part).place]
        found.flags.writeable = False
        return found

    def fetch(self, name: str, block: Optional[Block] = None) -> None:
        """Have the system read the bytes of a tensor, or of a block of it; it keeps them in memory for a while."""
        block = block or whole(self._entries[name].shape)
        for part in self._entries[name].slices.meeting(block):
            both = common(part, block)
            assert both is not None
            for _ in self._files[part.file].chunks(name, both.within(part).place[0] if part.shape else None):
                pass

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors by name; nothing is read."""
        return {name: entry.shape for name, entry in self._entries.items()}

    def dtypes(self) -> dict[str, str]:
        """Of the tensors by name."""
        return {name: entry.dtype for name, entry in self._entries.items()}

    def entry(self, name: str) -> TensorEntry:
        """Shape, dtype and slices of a tensor."""
        return self._entries[name]

    def lazy(self, name: str) -> LazyTensor:
        """Shape and dtype of a tensor now, its numbers later."""
        entry = self._entries[name]
        return LazyTensor(shape=entry.shape, dtype=DTYPE_OF_NAME[entry.dtype], read=lambda: self[name])


class Blocks(Protocol):
    """Tensors of which blocks can be had."""

    def shapes(self) -> Mapping[str, Shape]:
        """Of the whole tensors by name."""

    def dtypes(self) -> Mapping[str, str]:
        """NumPy's names, by the tensors'."""

    def block(self, name: str, block: Block) -> np.ndarray:
        """A block of a tensor."""

    def fetch(self, name: str, block: Block) -> None:
        """Have what a block is made of at hand for a while, where that can be done before."""


class Float32Blocks(Mapping[str, np.ndarray]):
    """Tensors by name, in float32 whatever they are; the numbers are read or made when they are asked for.

    Args:
        shapes: of the tensors.
        read: gives a block of one.
    """

    def __init__(self, shapes: Mapping[str, Shape], read: Callable[[str, Block], np.ndarray]) -> None:
        self._shapes, self._read = shapes, read

    @classmethod
    def of_whole(cls, shapes: Mapping[str, Shape], read: Callable[[str], np.ndarray]) -> Float32Blocks:
        """Of tensors that are read whole, one in memory at a time."""

        def block_of(name: str, block: Block) -> np.ndarray:
            array = read(name)
            return array if array.shape == block.shape else array[block.place]

        return cls(shapes, block_of)

    def shapes(self) -> Mapping[str, Shape]:
        """As Blocks."""
        return self._shapes

    def dtypes(self) -> Mapping[str, str]:
        """As Blocks."""
        return dict.fromkeys(self._shapes, "float32")

    def block(self, name: str, block: Block) -> np.ndarray:
        """As Blocks."""
        return np.asarray(self._read(name, block), np.float32)

    def fetch(self, name: str, block: Block) -> None:
        """As Blocks; nothing is known of it before."""

    def __getitem__(self, name: str) -> np.ndarray:
        return self.block(name, whole(self._shapes[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


class HeldTensors(Mapping[str, np.ndarray]):
    """Of some tensors the blocks that a rank of a mesh holds; the numbers are read when one is asked for.

    Args:
        where: the tensors' origin, for the message.

    Raises:
        CheckpointError: if the tensors are not those of the layout: names and shapes, all differences in one message.
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
        if faults := misfits(wanted, tensors.shapes(), dtypes):
            raise CheckpointError(misfit_message(where, faults))
        blocks = {name: held_block(placement, mesh, rank) for name, placement in placements.items()}
        self._tensors, self._blocks = tensors, {name: block for name, block in blocks.items() if block is not None}

    def __getitem__(self, name: str) -> np.ndarray:
        """The block, read-only."""
        return self._tensors.block(name, self._blocks[name])

    def fetch(self, name: str) -> None:
        """Have the system read the bytes of the block; it keeps them in memory for a while."""
        self._tensors.fetch(name, self._blocks[name])

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the blocks by name; nothing is read."""
        return {name: block.shape for name, block in self._blocks.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)


def shapes_of(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Of tensors by name; those of a checkpoint are not read for it."""
    if isinstance(arrays, (Tensors, Float32Blocks, HeldTensors)):
        return dict(arrays.shapes())
    return {name: tuple(array.shape) for name, array in arrays.items()}


def in_turn(arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays by name, one after another; while one of a checkpoint is used, the bytes of the next are read.

    Raises:
        CheckpointError: if a file is not what the index says.
    """
    if not isinstance(arrays, (Tensors, HeldTensors)):
        yield from ((name, arrays[name]) for name in names)
        return
    with ThreadPoolExecutor(1) as reader:
        fetched = [reader.submit(arrays.fetch, name) for name in names[:1]]
        for name, following in zip(names, [*names[1:], None]):
            fetched.pop().result()
            if following is not None:
                fetched.append(reader.submit(arrays.fetch, following))
            yield name, arrays[name]


def misfit_message(where: str, faults: Sequence[str]) -> str:
    """All that `misfits` has found, and what would work."""
    return f"{where}: does not fit this recipe's model: {'; '.join(faults)}. Use the recipe it was made with."


def misfits(
    wanted: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, tuple[str, str]] = MappingProxyType({}),
) -> list[str]:
    """How tensors differ from what they should be: a line each, in order of their names.

    Args:
        wanted, found: shapes by name.
        dtypes: of those in both, wanted and found, where they matter.
    """
    lines = [f"'{name}' is missing" for name in wanted if name not in found]
    lines += [f"'{name}' is left over" for name in found if name not in wanted]
    both = wanted.keys() & found.keys()
    lines += [
        f"'{name}' is {list(found[name])}, the model has {list(wanted[name])}"
        for name in both
        if found[name] != wanted[name]
    ]
    unlike = [(name, *pair) for name, pair in dtypes.items() if pair[0] != pair[1]]
    lines += [f"'{name}' is {other}, the model has {dtype}" for name, dtype, other in unlike]
    return sorted(lines)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that is whole; made by `open_checkpoint`. It is not removed before `release`, or this object goes.

    Attributes:
        path: its folder.
        index: what index.json says.
        files: its tensor files by name.
    """

    path: Path
    index: Index
    files: Files

    def weights(self) -> Tensors:
        """Weights by parameter name."""
        return self._tensors(WEIGHTS)

    def optimizer(self) -> Tensors:
        """The optimizer's state: `first_moment.<parameter>`, `second_moment.<parameter>` and scalars; may be empty."""
        return self._tensors(OPTIMIZER)

    def release(self) -> None:
        """It has been read, and may be removed."""
        self.files.hold.release()

    def _tensors(self, group: str) -> Tensors:
        """Tensors in the files of a group; a group may be cut into files, such as weights-rank3-0.safetensors."""
        tensors = self.index.tensors.items()
        return Tensors({name: entry for name, entry in tensors if entry.slices[0].file.startswith(group)}, self.files)


def list_checkpoints(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, ascending. Temporary folders are not among them."""
    return step_numbers(folder)


def open_checkpoint(path: Path, verify: bool = True) -> Checkpoint:
    """Open one checkpoint folder.

    Args:
        path: such as `runs/tiny/checkpoints/step_120`.
        verify: compare all checksums, which reads all files; sizes are always compared, and the header of a file
            before it is used.

    Raises:
        CheckpointError: if it is missing or damaged; the message names the file and what differs.
    """
    checkpoint = _unchecked(Path(path))
    for fault in faults_of(checkpoint, verify):
        raise CheckpointError(fault)
    return checkpoint


def _unchecked(path: Path) -> Checkpoint:
    """A checkpoint of which only the index was read.

    Raises:
        CheckpointError: if there is none.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: there is no such checkpoint folder.")
    hold = Hold(path)
    index = Index.read(path)
    return Checkpoint(path=path, index=index, files=Files(path, index, hold))


def damage_of(path: Path) -> tuple[Optional[Checkpoint], list[str]]:
    """A checkpoint, unless its index cannot be read, and everything that is wrong with it."""
    try:
        checkpoint = _unchecked(Path(path))
    except CheckpointError as error:
        return None, [str(error)]
    return checkpoint, list(faults_of(checkpoint))


def faults_of(checkpoint: Checkpoint, verify: bool = True) -> Iterator[str]:
    """What is wrong with the files of a checkpoint, a line each; files are read at the same time.

    Args:
        verify: as open_checkpoint.
    """
    sound = []
    for name, wanted in checkpoint.index.files.items():
        try:
            size = file_inside(checkpoint.path, name, CheckpointError).stat().st_size
        except CheckpointError as error:
            yield str(error)
            continue
        if size != wanted:
            yield f"{checkpoint.path / name}: damaged: {size} bytes, the index says {wanted}."
        else:
            sound.append(name)
    if verify:
        with ThreadPoolExecutor(usable_cores()) as readers:
            batches = (batch for name in sound for batch in _batches(checkpoint, name))
            for faults in readers.map(lambda batch: batch(), batches):
                yield from faults


def _batches(checkpoint: Checkpoint, name: str) -> Iterator[Callable[[], list[str]]]:
    """The checks of what is in a file, so that many threads have something to do even if there is one file."""
    try:
        file = checkpoint.files[name]
    except CheckpointError as error:
        fault = str(error)
        yield lambda: [fault]
        return
    batch, room = list[tuple[str, Slice]](), BATCH_BYTES
    for tensor, part in checkpoint.files.slices_in(name):
        batch.append((tensor, part))
        room -= file.array(tensor).nbytes
        if room <= 0:
            yield partial(_faults_in, file, batch)
            batch, room = [], BATCH_BYTES
    yield partial(_faults_in, file, batch)


def _faults_in(file: TensorFile, slices: Sequence[tuple[str, Slice]]) -> list[str]:
    """What is wrong with the numbers of some slices in a file."""
    return [
        f"{file.path}: damaged: SHA-256 {found} of tensor '{tensor}', the index says {part.sha256}."
        for tensor, part in slices
        if (found := file.sha256(tensor)) != part.sha256
    ]


def newest_checkpoint(
    folder: Path, say: Callable[[str], None], verify: bool = True, last: Optional[int] = None
) -> Optional[Checkpoint]:
    """The newest whole checkpoint of a folder; None when there is none.

    Args:
        folder: of all checkpoints; may be missing.
        say: called with one line for each damaged checkpoint, which is passed over.
        verify: as open_checkpoint.
        last: step after which none is looked at; default: all are.
    """
    steps = [step for step in list_checkpoints(folder) if last is None or step <= last]
    for step in reversed(steps):
        try:
            return open_checkpoint(Path(folder) / f"step_{step}", verify)
        except CheckpointError as error:
            say(f"{error} Checkpoint step_{step} is passed over.")
    return None
