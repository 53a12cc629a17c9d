"""What one rank writes of a checkpoint: its pieces, in files of limited size, and a note of them for the first rank.

Ranks find one another in the checkpoint's temporary folder, on any file system that all of them see. The first makes it
under a name that no other job has; each rank that is done leaves its note, or why it failed.
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Mapping, Optional

from mindmodel.checkpoint.shares import Piece, Placement, held_block, pieces
from mindmodel.checkpoint.slices import Table
from mindmodel.errors import CheckpointError
from mindmodel.files import write_file_safely, write_text_safely
from mindmodel.parallel.mesh import Mesh
from mindmodel.tensor_file import LazyTensor, Tensor, TensorFile, batches, write_tensors

POLL_S, PATIENCE_S = 0.01, 600.0
MAX_FILE_BYTES = 4 * 2**30

Groups = Mapping[str, Mapping[str, Tensor]]
"""Tensors by name, by the word that the names of their files begin with."""


@dataclass(frozen=True, kw_only=True)
class Crew:
    """The ranks that write a checkpoint together, seen from one of them.

    Attributes:
        rank: this one.
        mesh: of all.
        placements: of every tensor, in the same order on all ranks; None: each rank holds all of them whole.
        attempt: a word of letters and digits that all ranks have, and no other job has had.
        patience_s: how long to wait for the next rank to be done.
        max_file_bytes: where a new file is begun.
    """

    rank: int = 0
    mesh: Mesh = Mesh()
    placements: Optional[Mapping[str, Placement]] = None
    attempt: str = "alone"
    patience_s: float = PATIENCE_S
    max_file_bytes: int = MAX_FILE_BYTES

    @property
    def count(self) -> int:
        """Ranks in all."""
        return self.mesh.num_devices

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the index."""
        return self.rank == 0

    def placements_of(self, groups: Groups) -> Mapping[str, Placement]:
        """Those given, or those of tensors that every rank holds whole."""
        if self.placements is not None:
            return self.placements
        return {
            name: Placement(
                shape=tuple(tensor.shape),
                dtype=tensor.dtype.name,
                axes=(None,) * len(tensor.shape),
                stage=None,
            )
            for tensors in groups.values()
            for name, tensor in tensors.items()
        }


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a rank has written.

    Attributes:
        files: bytes by name.
        slices: numbered by the tensors' places among the placements and the files' in `files`.
    """

    files: Mapping[str, int]
    slices: Table


@dataclass(frozen=True, kw_only=True)
class PlannedPart:
    """What a rank is to write.

    Attributes:
        files: by file and tensor, the piece and its numbers.
        placements: of all tensors of the checkpoint.
    """

    crew: Crew
    files: Mapping[str, Mapping[str, tuple[Piece, Tensor]]]
    placements: Mapping[str, Placement]

    @property
    def nbytes(self) -> int:
        """Of all numbers."""
        return sum(numbers.nbytes for content in self.files.values() for _, numbers in content.values())


def plan_part(groups: Groups, crew: Crew) -> PlannedPart:
    """What this rank is to write of the tensors that it holds: of each its own block.

    Raises:
        CheckpointError: if a block is not what the placements say.
        LayoutError: if the mesh does not divide a tensor.
    """
    placements = crew.placements_of(groups)
    mine = {piece.name: piece for piece in pieces(placements, crew.mesh, crew.rank)}
    files: dict[str, dict[str, tuple[Piece, Tensor]]] = {}
    for group, tensors in groups.items():
        parts = {name: _part_of(tensors[name], mine[name], placements[name], crew) for name in tensors if name in mine}
        for file, batch in _files_of(group, parts, crew).items():
            files[file] = {name: (mine[name], part) for name, part in batch.items()}
    return PlannedPart(crew=crew, files=files, placements=placements)


def _files_of(group: str, parts: Mapping[str, Tensor], crew: Crew) -> dict[str, dict[str, Tensor]]:
    """A rank's parts of a group's tensors, by the file that they go into."""
    contents = list(batches(parts, crew.max_file_bytes))
    rank = f"-rank{crew.rank}" if crew.count > 1 else ""
    numbers = [f"-{number}" for number in range(len(contents))] if len(contents) > 1 else [""]
    return {f"{group}{rank}{number}.safetensors": content for number, content in zip(numbers, contents)}


def _part_of(tensor: Tensor, piece: Piece, placement: Placement, crew: Crew) -> Tensor:
    """A piece of what the rank holds; a view."""
    held = held_block(placement, crew.mesh, crew.rank)
    assert held is not None  # it has a piece of it
    if (held.shape, placement.dtype) != (tuple(tensor.shape), tensor.dtype.name):
        raise CheckpointError(
            f"tensor '{piece.name}': rank {crew.rank} holds {list(tensor.shape)} {tensor.dtype.name}, and by the plan "
            f"{list(held.shape)} {placement.dtype}. The plan's table and the model do not agree."
        )
    if piece.shape == held.shape:
        return tensor
    place = piece.within(held).place
    if isinstance(tensor, LazyTensor):
        read = tensor.read
        return LazyTensor(shape=piece.shape, dtype=tensor.dtype, read=lambda: read()[place])
    return tensor[place]


def write_part(folder: Path, planned: PlannedPart) -> Part:
    """Write a rank's files into the temporary folder and sync them.

    Raises:
        OSError: as the system reports it.
    """
    files, rows = {}, []
    numbers_of = {name: number for number, name in enumerate(planned.placements)}
    for at, (file, content) in enumerate(planned.files.items()):
        written = write_tensors(folder / file, {name: numbers for name, (_, numbers) in content.items()}, new=True)
        files[file] = written.num_bytes
        rows += [(numbers_of[name], at, piece, written.sha256[name]) for name, (piece, _) in content.items()]
    return Part(files=files, slices=Table.of(rows))


@contextmanager
def joined(folder: Path, crew: Crew) -> Iterator[None]:
    """Of a rank that is not the first: wait until the folder is there; if the block fails, tell the first.

    Raises:
        CheckpointError: if the first does not make it in time.
    """
    _await_folder(folder, crew)
    try:
        yield
    except BaseException as error:
        with suppress(OSError):
            for path in folder.glob(f"*-rank{crew.rank}[-.]*safetensors"):
                path.unlink()  # a full disk has no room for the note
            write_text_safely(folder / f"rank_{crew.rank}.failed", f"{error}" or type(error).__name__)
        raise


def _await_folder(folder: Path, crew: Crew) -> None:
    end = time.monotonic() + crew.patience_s
    while not folder.is_dir():
        if time.monotonic() > end:
            raise CheckpointError(
                f"{folder}: rank {crew.rank} waited {crew.patience_s:g} s for rank 0 to begin this checkpoint. Look "
                "into that rank's log; all ranks must see the same folder."
            )
        time.sleep(POLL_S)


def leave_note(folder: Path, part: Part, crew: Crew) -> None:
    """Tell the first rank what this one has written."""
    with write_file_safely(_note(folder, crew.rank)) as temporary:
        part.slices.write(temporary, {"files": json.dumps(part.files)})


def collect_notes(folder: Path, crew: Crew) -> Iterator[Part]:
    """The parts of all ranks but the first, as they come; their notes are removed.

    Raises:
        CheckpointError: if a rank has failed, or none is done for too long.
    """
    waiting = set(range(1, crew.count))
    end = time.monotonic() + crew.patience_s
    while waiting:
        for rank in _done(folder, waiting):
            note = TensorFile(_note(folder, rank))
            yield Part(files=json.loads(note.metadata["files"]), slices=Table.read(note))
            _note(folder, rank).unlink()
            waiting.discard(rank)
            end = time.monotonic() + crew.patience_s
        if time.monotonic() > end:
            ranks = ", ".join(map(str, sorted(waiting)))
            raise CheckpointError(
                f"{folder}: rank {ranks} did not write its part within {crew.patience_s:g} s. Nothing of this "
                "checkpoint is kept; earlier ones are untouched. Look into that rank's log."
            )
        time.sleep(POLL_S if waiting else 0)


def _note(folder: Path, rank: int) -> Path:
    return folder / f"rank_{rank}.note"


def _done(folder: Path, waiting: set[int]) -> list[int]:
    """Ranks whose notes are there."""
    names = {path.name for path in folder.iterdir()}
    for rank in sorted(waiting):
        if f"rank_{rank}.failed" in names:
            reason = (folder / f"rank_{rank}.failed").read_text(encoding="utf-8")
            raise CheckpointError(f"{folder}: rank {rank} could not write its part: {reason}")
    return [rank for rank in sorted(waiting) if _note(folder, rank).name in names]
