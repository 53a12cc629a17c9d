"""Saving: a temporary folder, the index last, a rename; then the checkpoints that are no longer wanted are removed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Mapping

from mindmodel.checkpoint.index import INDEX_NAME, Index, Slice, TensorEntry
from mindmodel.checkpoint.part import (
    Crew,
    Groups,
    Part,
    announce,
    collect_notes,
    joined,
    leave_note,
    planned_files,
    write_part,
)
from mindmodel.checkpoint.retention import remove_leftovers, retain
from mindmodel.checkpoint.tensor_file import Tensor
from mindmodel.errors import CheckpointError
from mindmodel.files import write_folder_safely, write_text_safely

WEIGHTS, OPTIMIZER = "weights", "optimizer"


def save_checkpoint(
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
    crew: Crew = Crew(),
) -> Path:
    """Write the checkpoint `folder/step_N` and remove those that are no longer to be kept.

    A whole `step_N` that exists is replaced. The folder must have one job at a time; see `RunFolder.lock`. All ranks of
    the job call this for the same step: each writes its part, and the first returns when the checkpoint is whole.

    Args:
        folder: of all checkpoints; made when it is missing.
        step, samples, tokens: what was consumed until now.
        weights: by parameter name; of a crew, the blocks that this rank holds.
        optimizer: as weights: `first_moment.<parameter>`, `second_moment.<parameter>` and scalars; empty: weights only.
        recipe, versions, random, layout: noted in the index, plain JSON values; see `Index`.
        keep: newest checkpoints to keep, this one included, at least 1.
        keep_every: checkpoints whose step is a multiple are kept for ever; 0 is off.
        crew: the ranks that write it together.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: if it could not be written, as on a full disk, or by another rank. Nothing of it is left, and
            the others are as they were.
    """
    path = Path(folder) / f"step_{step}"
    groups = {WEIGHTS: weights, OPTIMIZER: optimizer}
    try:
        if not crew.is_first:
            _join(path, groups, crew)
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        with write_folder_safely(path) as temporary:
            parts = _all_parts(temporary, groups, crew)
            index = Index(
                step=step,
                samples=samples,
                tokens=tokens,
                layout=layout,
                recipe=recipe,
                versions=versions,
                random=random,
                files={name: entry for part in parts for name, entry in part.files.items()},
                tensors=_entries(groups, parts, crew),
            )
            if fault := index.fault() or _missing(temporary, index):
                raise CheckpointError(f"{path}: what the ranks wrote does not make up the checkpoint: {fault}.")
            write_text_safely(temporary / INDEX_NAME, index.to_json())
        retain(path.parent, step, keep, keep_every)
    except OSError as error:
        raise CheckpointError(_failure(path, groups, crew, error)) from error
    return path


def _join(path: Path, groups: Groups, crew: Crew) -> None:
    """What a rank does that is not the first."""
    temporary = path.with_name(f".{path.name}.tmp")
    with joined(temporary, crew):
        leave_note(temporary, write_part(temporary, groups, crew), crew)


def _all_parts(temporary: Path, groups: Groups, crew: Crew) -> list[Part]:
    """Of the first rank, which writes its own meanwhile, and of all others."""
    if crew.count == 1:
        return [write_part(temporary, groups, crew)]
    announce(temporary, crew)
    return [write_part(temporary, groups, crew), *collect_notes(temporary, crew)]


def _missing(temporary: Path, index: Index) -> str:
    """A file that is not there as its rank has said; empty when all are."""
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(temporary)}
    short = (name for name, entry in index.files.items() if sizes.get(name) != entry.bytes)
    return next((f"'{name}' has {sizes.get(name, 0)} of {index.files[name].bytes} bytes" for name in short), "")


def _entries(groups: Groups, parts: list[Part], crew: Crew) -> dict[str, TensorEntry]:
    """Index entries of all tensors."""
    slices: dict[str, list[Slice]] = {}
    for part in parts:
        for name, cut in part.slices.items():
            slices.setdefault(name, []).append(cut)
    return {
        name: TensorEntry(shape=placement.shape, dtype=placement.dtype, slices=tuple(slices.get(name, ())))
        for name, placement in crew.placements_of(groups).items()
    }


def _failure(path: Path, groups: Groups, crew: Crew, error: OSError) -> str:
    needed = sum(part.nbytes for content in planned_files(groups, crew).values() for _, part in content.values())
    rank = f"rank {crew.rank}: " if crew.count > 1 else ""
    return (
        f"{path}: {rank}the checkpoint could not be written: {error.strerror or error}. It needs {needed:,} bytes, "
        f"{_free_bytes(path.parent):,} are free. Earlier checkpoints are untouched; make room or choose another "
        "runtime.output, then start again."
    )


def _free_bytes(folder: Path) -> int:
    """Free bytes where the folder is, or would be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
