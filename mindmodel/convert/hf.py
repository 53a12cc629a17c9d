"""Runs to Hugging Face folders and back. Tensors stream through: one at a time is in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, Optional

from mindmodel.convert.export import Export, open_export
from mindmodel.convert.folder import (
    CONFIG,
    GENERATION_CONFIG,
    SHARD_MAX_BYTES,
    read_tensors,
    write_json,
    write_shards,
)
from mindmodel.convert.imported import import_run
from mindmodel.convert.written import Written, cast, check_free, copy_files, written
from mindmodel.data.tokenizer import TOKENIZER_FILES
from mindmodel.files import write_folder_safely


def to_hf(path: Path, out: Path, dtype: Optional[str] = None, max_shard_bytes: int = SHARD_MAX_BYTES) -> Written:
    """Write a run's weights as a Hugging Face folder.

    Args:
        path: a run (its newest whole checkpoint) or one of its `step_N` folders.
        out: a new or empty folder.
        dtype: float32, bfloat16 or float16; default as stored.
        max_shard_bytes: a larger model is written as several files.

    Raises:
        CheckpointError: if there is no whole checkpoint.
        ConversionError: if the weights are not those of the run's model or do not fit the dtype, or `out` is taken.
    """
    out = Path(out)
    check_free(out)
    export = open_export(Path(path))
    tensors = {name: cast(name, tensor, dtype or tensor.dtype.name) for name, tensor in export.tensors.items()}
    with write_folder_safely(out) as folder:
        files = write_shards(folder, tensors, max_shard_bytes)
        files += write_model_files(folder, export, next(iter(tensors.values())).dtype.name)
    return written(out, files, tensors)


def from_hf(folder: Path, run: Path) -> Written:
    """Make a run of a Hugging Face folder: recipe, tokenizer, and the checkpoint `step_0` with the weights as they are.

    Args:
        folder: with config.json and safetensors.
        run: a new or empty folder.

    Raises:
        CheckpointError: if `run` cannot be written.
        ConversionError: if the folder is incomplete or damaged, its model is beyond what the decoder can do, or `run`
            is taken.
    """
    folder = Path(folder)
    return import_run(Path(run), folder, lambda family: family.rules, folder, lambda: read_tensors(folder))


def write_model_files(folder: Path, export: Export, dtype: str) -> list[str]:
    """Write config.json, generation_config.json and the tokenizer; the names of those that there are."""
    files = _write_jsons(folder, {CONFIG: export.config(dtype), GENERATION_CONFIG: export.generation_config()})
    return files + copy_files(export.run.tokenizer, folder, TOKENIZER_FILES)


def _write_jsons(folder: Path, contents: Mapping[str, Optional[Mapping[str, Any]]]) -> list[str]:
    """Write those that there are."""
    present = {name: content for name, content in contents.items() if content is not None}
    for name, content in present.items():
        write_json(folder / name, content)
    return list(present)
