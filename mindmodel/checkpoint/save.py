"""Saving: a temporary folder, the index last, a rename; then the checkpoints that are no longer wanted are removed."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable, Mapping, Optional, Sequence

from mindmodel.checkpoint.background import HostMemory
from mindmodel.checkpoint.index import Index, TensorEntry
from mindmodel.checkpoint.part import (
    Crew,
    Part,
    PlannedPart,
    collect_notes,
    joined,
    leave_note,
    plan_part,
    write_part,
)
from mindmodel.checkpoint.retention import remove_leftovers, retain
from mindmodel.checkpoint.shares import Placement
from mindmodel.checkpoint.slices import Slices, Table
from mindmodel.errors import CheckpointError
from mindmodel.files import temporary_of, write_folder_safely
from mindmodel.tensor_file import Tensor

WEIGHTS, OPTIMIZER = "weights", "optimizer"


def save_checkpoint(folder: Path, **what: Any) -> Path:
    """Write a checkpoint; arguments, result and errors are those of `checkpoint_writer` and of what that gives."""
    return checkpoint_writer(folder, **what)()


def checkpoint_writer(
    folder: Path,
    *,
    step: int,
    samples: int,
    tokens: int,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    recipe: Mapping[str, Any],
    versions: Mapping[str, str],
    random: Mapping[str, Any],
    layout: Mapping[str, int],
    keep: int,
    keep_every: int,
    losses: Mapping[int, float] = MappingProxyType({}),
    crew: Crew = Crew(),
    memory: Optional[HostMemory] = None,
) -> Callable[[], Path]:
    """A function that writes the checkpoint `folder/step_N` and removes those that are no longer to be kept.

    A whole `step_N` that exists is replaced. The folder must have one job at a time; see `RunFolder.lock`. All ranks of
    the job do this for the same step: each writes its part, and the first returns when the checkpoint is whole.

    Args:
        folder: of all checkpoints; made when it is missing.
        step, samples, tokens: what was consumed until now.
        weights: by parameter name; of a crew, the blocks that this rank holds.
        optimizer: as weights: `first_moment.<parameter>`, `second_moment.<parameter>` and scalars; empty: weights only.
        recipe, versions, random, layout: noted in the index, plain JSON values; see `Index`.
        keep: newest checkpoints to keep, this one included, at least 1.
        keep_every: checkpoints whose step is a multiple are kept for ever; 0 is off.
        losses: held-out losses by step: of the checkpoints that have one, the best is kept too.
        crew: the ranks that write it together.
        memory: where the numbers are copied before this returns; without, they are read when they are written.

    Returns:
        What writes it, and gives the checkpoint's folder. It raises CheckpointError if that could not be written, as on
        a full disk, or by another rank: nothing of it is left then, and the others are as they were.

    Raises:
        CheckpointError, LayoutError: if a tensor is not what the crew's placements say.
    """
    planned = plan_part({WEIGHTS: weights, OPTIMIZER: optimizer}, crew)
    if memory is not None:
        planned = memory.copy(planned)
    path = folder / f"step_{step}"
    place = path.absolute()  # the working folder is another while MindSpore compiles beside the writer

    def index_of(parts: list[Part]) -> Index:
        return Index(
            step=step,
            samples=samples,
            tokens=tokens,
            layout=layout,
            recipe=recipe,
            versions=versions,
            random=random,
            files={name: size for part in parts for name, size in part.files.items()},
            tensors=tensor_entries(planned.placements, parts),
        )

    def write() -> Path:
        try:
            if crew.is_first:
                _write(place, planned, index_of)
                retain(place.parent, step, keep, keep_every, losses)
            else:
                _join(place, planned)
        except OSError as error:
            raise CheckpointError(_failure(place, planned, error)) from error
        return path

    return write


def _write(path: Path, planned: PlannedPart, index_of: Callable[[list[Part]], Index]) -> None:
    """What the first rank does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    with write_folder_safely(path, planned.crew.attempt) as temporary:
        index = index_of(_all_parts(temporary, planned))
        if fault := index.fault() or _missing(temporary, index):
            raise CheckpointError(f"{path}: what the ranks wrote does not make up the checkpoint: {fault}.")
        index.write(temporary)


def _join(path: Path, planned: PlannedPart) -> None:
    """What every other rank does."""
    temporary = temporary_of(path, planned.crew.attempt)
    with joined(temporary, planned.crew):
        leave_note(temporary, write_part(temporary, planned), planned.crew)


def _all_parts(temporary: Path, planned: PlannedPart) -> list[Part]:
    """Of the first rank, which writes its own meanwhile, and of all others."""
    return [write_part(temporary, planned), *collect_notes(temporary, planned.crew)]


def _missing(temporary: Path, index: Index) -> str:
    """A file that is not there as its rank has said; empty when all are."""
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(temporary)}
    short = ((name, size) for name, size in index.files.items() if sizes.get(name) != size)
    return next((f"'{name}' has {sizes.get(name, 0)} of {size} bytes" for name, size in short), "")


def tensor_entries(placements: Mapping[str, Placement], parts: Sequence[Part]) -> dict[str, TensorEntry]:
    """The index entries of all tensors, of what all ranks have written."""
    files, tables = list[str](), []
    for part in parts:
        tables.append(replace(part.slices, file=part.slices.file + len(files)))
        files += part.files
    rows = Table.joined(tables).by_tensor([len(placement.shape) for placement in placements.values()])
    return {
        name: TensorEntry(shape=placement.shape, dtype=placement.dtype, slices=Slices(table, files))
        for (name, placement), table in zip(placements.items(), rows)
    }


def _failure(path: Path, planned: PlannedPart, error: OSError) -> str:
    rank = f"rank {planned.crew.rank}: " if planned.crew.count > 1 else ""
    return (
        f"{path}: {rank}the checkpoint could not be written: {error.strerror or error}. It needs {planned.nbytes:,} "
        f"bytes, {_free_bytes(path.parent):,} are free. Earlier checkpoints are untouched; make room or choose another "
        "runtime.output, then start again."
    )


def _free_bytes(folder: Path) -> int:
    """Free bytes where the folder is, or would be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
