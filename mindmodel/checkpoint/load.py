"""Loading: a checkpoint is checked against its index before a number of it is used; a damaged one is passed over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, Mapping, Optional

import numpy as np

from mindmodel.checkpoint.index import INDEX_NAME, Index, TensorEntry
from mindmodel.checkpoint.save import OPTIMIZER, WEIGHTS, step_numbers
from mindmodel.checkpoint.tensor_file import DTYPE_OF_NAME, LazyTensor, TensorFile
from mindmodel.errors import CheckpointError
from mindmodel.files import file_inside, read_json, sha256_of


class Tensors(Mapping[str, np.ndarray]):
    """Tensors by name; the numbers are read when a tensor is asked for."""

    def __init__(self, entries: Mapping[str, TensorEntry], files: Mapping[str, TensorFile]) -> None:
        self._entries, self._files = entries, files

    def __getitem__(self, name: str) -> np.ndarray:
        """The tensor, read-only; a view of the file when it lies there whole."""
        entry = self._entries[name]
        if len(entry.slices) == 1:
            return self._files[entry.slices[0].file].array(name)
        whole = np.empty(entry.shape, DTYPE_OF_NAME[entry.dtype])
        for part in entry.slices:
            where = tuple(slice(start, start + size) for start, size in zip(part.offset, part.shape))
            whole[where] = self._files[part.file].array(name)
        whole.flags.writeable = False
        return whole

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def lazy(self, name: str) -> LazyTensor:
        """Shape and dtype of a tensor now, its numbers later."""
        entry = self._entries[name]
        return LazyTensor(shape=entry.shape, dtype=DTYPE_OF_NAME[entry.dtype], read=lambda: self[name])


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that is whole; made by `open_checkpoint`.

    Attributes:
        path: its folder.
        index: what index.json says.
        files: its tensor files by name.
    """

    path: Path
    index: Index
    files: Mapping[str, TensorFile]

    def weights(self) -> Tensors:
        """Weights by parameter name."""
        return self._tensors(WEIGHTS)

    def optimizer(self) -> Tensors:
        """The optimizer's state: `first_moment.<parameter>`, `second_moment.<parameter>` and scalars; may be empty."""
        return self._tensors(OPTIMIZER)

    def _tensors(self, group: str) -> Tensors:
        """Tensors in the files of a group; a group may be cut into files, such as weights-0.safetensors."""
        tensors = self.index.tensors.items()
        return Tensors({name: entry for name, entry in tensors if entry.slices[0].file.startswith(group)}, self.files)


def list_checkpoints(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, ascending. Temporary folders are not among them."""
    return step_numbers(folder)


def open_checkpoint(path: Path, verify: bool = True) -> Checkpoint:
    """Open one checkpoint folder.

    Args:
        path: such as `runs/tiny/checkpoints/step_120`.
        verify: compare the checksum of every file, which reads all of them; sizes and headers are always compared.

    Raises:
        CheckpointError: if it is missing or damaged; the message names the file and what differs.
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"{path}: there is no such checkpoint folder.")
    index = Index.from_json(read_json(path / INDEX_NAME, CheckpointError), path / INDEX_NAME)
    for name, entry in index.files.items():
        file = file_inside(path, name, CheckpointError)
        if file.stat().st_size != entry.bytes:
            raise CheckpointError(f"{file}: damaged: {file.stat().st_size} bytes, the index says {entry.bytes}.")
        if verify and (found := sha256_of(file)) != entry.sha256:
            raise CheckpointError(f"{file}: damaged: SHA-256 {found}, the index says {entry.sha256}.")
    files = {name: TensorFile(path / name) for name in index.files}
    for name, tensor in index.tensors.items():
        _check_tensor(path, name, tensor, files)
    return Checkpoint(path=path, index=index, files=files)


def _check_tensor(path: Path, name: str, tensor: TensorEntry, files: Mapping[str, TensorFile]) -> None:
    """The files must hold what the index says of a tensor."""
    for part in tensor.slices:
        file = files[part.file]
        held = (file.shape(name), file.dtype(name).name) if name in file.names else None
        if held != (part.shape, tensor.dtype):
            raise CheckpointError(
                f"{path / part.file}: tensor '{name}' is {held or 'missing'}, "
                f"the index says {(part.shape, tensor.dtype)}."
            )


def newest_checkpoint(folder: Path, say: Callable[[str], None]) -> Optional[Checkpoint]:
    """The newest whole checkpoint of a folder; None when there is none.

    Args:
        folder: of all checkpoints; may be missing.
        say: called with one line for each damaged checkpoint, which is passed over.
    """
    for step in reversed(list_checkpoints(folder)):
        try:
            return open_checkpoint(Path(folder) / f"step_{step}")
        except CheckpointError as error:
            say(f"{error} Checkpoint step_{step} is passed over.")
    return None
