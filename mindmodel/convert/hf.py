"""Runs to Hugging Face folders and back. Tensors stream through: one at a time is in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from mindmodel.convert.export import export_run, hf_rules
from mindmodel.convert.folder import SHARD_MAX_BYTES, read_tensors, write_shards
from mindmodel.convert.imported import import_run
from mindmodel.convert.written import Written


def to_hf(path: Path, out: Path, dtype: Optional[str] = None, max_shard_bytes: int = SHARD_MAX_BYTES) -> Written:
    """Write a run's weights as a Hugging Face folder; other arguments and errors are those of `export_run`.

    Args:
        max_shard_bytes: a larger model is written as several files.
    """
    return export_run(
        path, out, dtype, hf_rules, lambda folder, _, tensors: write_shards(folder, tensors, max_shard_bytes)
    )


def from_hf(folder: Path, run: Path) -> Written:
    """Make a run of a Hugging Face folder with config.json and safetensors; errors are those of `import_run`."""
    return import_run(run, folder, hf_rules, folder, lambda: read_tensors(folder))
