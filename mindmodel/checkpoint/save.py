"""Saving: a temporary folder, the index last, a rename; then the checkpoints that are no longer wanted are removed."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any, Mapping

from mindmodel.checkpoint.index import INDEX_NAME, FileEntry, Index, Slice, TensorEntry
from mindmodel.checkpoint.tensor_file import Tensor, write_tensors
from mindmodel.errors import CheckpointError
from mindmodel.files import sync_folder, write_folder_safely, write_text_safely

WEIGHTS, OPTIMIZER = "weights", "optimizer"
STEP_NAME = re.compile(r"step_(0|[1-9]\d*)")
LEFTOVER_NAME = re.compile(r"\.step_\d+\.(tmp|old)")


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
) -> Path:
    """Write the checkpoint `folder/step_N` and remove those that are no longer to be kept.

    A whole `step_N` that exists is replaced. The folder must have one writer at a time; see `RunFolder.lock`.

    Args:
        folder: of all checkpoints; made when it is missing.
        step, samples, tokens: what was consumed until now.
        weights: by parameter name.
        optimizer: `first_moment.<parameter>`, `second_moment.<parameter>` and scalars; empty: weights only.
        recipe, versions, random, layout: noted in the index, plain JSON values; see `Index`.
        keep: newest checkpoints to keep, this one included, at least 1.
        keep_every: checkpoints whose step is a multiple are kept for ever; 0 is off.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: if it could not be written, as on a full disk. Nothing of it is left, and the others are as
            they were.
    """
    folder = Path(folder)
    groups = {f"{group}.safetensors": tensors for group, tensors in ((WEIGHTS, weights), (OPTIMIZER, optimizer))}
    groups = {name: tensors for name, tensors in groups.items() if tensors}
    path = folder / f"step_{step}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        with write_folder_safely(path) as temporary:
            files = _write_files(temporary, groups)
            index = Index(
                step=step,
                samples=samples,
                tokens=tokens,
                layout=layout,
                recipe=recipe,
                versions=versions,
                random=random,
                files=files,
                tensors=_entries(groups),
            )
            write_text_safely(temporary / INDEX_NAME, index.to_json())
    except OSError as error:
        raise CheckpointError(_failure(path, groups, error)) from error
    _retain(folder, step, keep, keep_every)
    return path


def step_numbers(folder: Path) -> list[int]:
    """Steps that have a folder of the final name, ascending; unfinished ones have another name."""
    if not Path(folder).is_dir():
        return []
    matches = (STEP_NAME.fullmatch(path.name) for path in Path(folder).iterdir() if path.is_dir())
    return sorted(int(match[1]) for match in matches if match)


def _write_files(folder: Path, groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, FileEntry]:
    files = {}
    for name, tensors in groups.items():
        sha256, num_bytes = write_tensors(folder / name, tensors)
        files[name] = FileEntry(bytes=num_bytes, sha256=sha256)
    return files


def _entries(groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, TensorEntry]:
    """Index entries of tensors that each lie whole in one file."""
    return {
        name: TensorEntry(
            shape=tuple(tensor.shape),
            dtype=tensor.dtype.name,
            slices=(Slice(file=file, offset=(0,) * len(tensor.shape), shape=tuple(tensor.shape)),),
        )
        for file, tensors in groups.items()
        for name, tensor in tensors.items()
    }


def _failure(path: Path, groups: Mapping[str, Mapping[str, Tensor]], error: OSError) -> str:
    needed = sum(tensor.nbytes for tensors in groups.values() for tensor in tensors.values())
    return (
        f"{path}: the checkpoint could not be written: {error.strerror or error}. It needs {needed:,} bytes, "
        f"{_free_bytes(path.parent):,} are free. Earlier checkpoints are untouched; make room or choose another "
        "runtime.output, then start again."
    )


def _free_bytes(folder: Path) -> int:
    """Free bytes where the folder is, or would be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _remove_leftovers(folder: Path) -> None:
    """What a killed process left: folders half-written or half-removed."""
    for path in folder.iterdir():
        if LEFTOVER_NAME.fullmatch(path.name):
            shutil.rmtree(path)


def _retain(folder: Path, step: int, keep: int, keep_every: int) -> None:
    """Remove what is not wanted. Later steps do not count: they are damaged, since the run went on from before them."""
    earlier = [number for number in step_numbers(folder) if number <= step]
    for number in earlier[:-keep]:
        if not (keep_every and number % keep_every == 0):
            old = folder / f".step_{number}.old"
            os.rename(folder / f"step_{number}", old)
            shutil.rmtree(old)
    sync_folder(folder)
