"""Loading: a checkpoint is checked against its index before a number of it is used; a damaged one is passed over."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable, Iterator, Mapping, Optional

from mindmodel.checkpoint.index import Index
from mindmodel.checkpoint.retention import Hold, list_checkpoints
from mindmodel.checkpoint.save import OPTIMIZER, WEIGHTS
from mindmodel.checkpoint.slices import Slice
from mindmodel.checkpoint.tensors import Files, Tensors
from mindmodel.errors import CheckpointError
from mindmodel.files import file_inside
from mindmodel.machine import usable_cores
from mindmodel.tensor_file import TensorFile, batches

BATCH_BYTES = 64 * 2**20
"""What a thread verifies at a time, or a tensor where that is more."""


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


def open_checkpoint(path: Path, verify: bool = True) -> Checkpoint:
    """Open one checkpoint folder.

    Args:
        path: such as `runs/tiny/checkpoints/step_120`.
        verify: compare all checksums, which reads all files; sizes are always compared, and the header of a file
            before it is used.

    Raises:
        CheckpointError: if it is missing or damaged; the message names the file and what differs.
    """
    checkpoint = _unchecked(path)
    for fault in _faults_of(checkpoint, verify):
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
        checkpoint = _unchecked(path)
    except CheckpointError as error:
        return None, [str(error)]
    return checkpoint, list(_faults_of(checkpoint))


def _faults_of(checkpoint: Checkpoint, verify: bool = True) -> Iterator[str]:
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
            checks = (check for name in sound for check in _checks(checkpoint, name))
            for faults in readers.map(lambda check: check(), checks):
                yield from faults


def _checks(checkpoint: Checkpoint, name: str) -> Iterator[Callable[[], list[str]]]:
    """The checks of what is in a file, so that many threads have something to do even if there is one file."""
    try:
        file = checkpoint.files[name]
    except CheckpointError as error:
        fault = str(error)
        yield lambda: [fault]
        return
    slices = dict(checkpoint.files.slices_in(name))
    for batch in batches({tensor: file.lazy(tensor) for tensor in slices}, BATCH_BYTES):
        yield partial(_faults_in, file, {tensor: slices[tensor] for tensor in batch})


def _faults_in(file: TensorFile, slices: Mapping[str, Slice]) -> list[str]:
    """What is wrong with the numbers of some slices in a file."""
    return [
        f"{file.path}: damaged: SHA-256 {found} of tensor '{tensor}', the index says {part.sha256}."
        for tensor, part in slices.items()
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
            return open_checkpoint(folder / f"step_{step}", verify)
        except CheckpointError as error:
            say(f"{error} Checkpoint step_{step} is passed over.")
    return None
