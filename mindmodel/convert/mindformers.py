"""Runs to MindFormers' checkpoint folders and back: weights only, tensor by tensor.

MindFormers' optimizers name and lay out their state in other ways, so a training goes on with fresh moments.
"""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from mindmodel.convert.export import open_export
from mindmodel.convert.folder import CONFIG, SHARD_MAX_BYTES
from mindmodel.convert.hf import write_model_files
from mindmodel.convert.imported import import_run
from mindmodel.convert.mindformers_folder import find_iteration, read_tensors, write_iteration
from mindmodel.convert.written import Written, cast, check_free, written
from mindmodel.errors import ConversionError
from mindmodel.files import write_folder_safely
from mindmodel.models.family import Family
from mindmodel.models.weight_rules import Rule


def to_mindformers(
    path: Path, out: Path, dtype: Optional[str] = None, max_file_bytes: int = SHARD_MAX_BYTES
) -> Written:
    """Write a run's weights as a folder that MindFormers loads, with config.json and tokenizer beside them.

    Args:
        path: a run (its newest whole checkpoint) or one of its `step_N` folders.
        out: a new or empty folder.
        dtype: float32, bfloat16 or float16; default as stored.
        max_file_bytes: a larger model is written as several files.

    Raises:
        CheckpointError: if there is no whole checkpoint.
        ConversionError: if the weights are not those of the run's model or do not fit the dtype, or `out` is taken.
    """
    out = Path(out)
    check_free(out)
    export = open_export(Path(path), _rules)
    tensors = {name: cast(name, tensor, dtype or tensor.dtype.name) for name, tensor in export.tensors.items()}
    with write_folder_safely(out) as folder:
        files = write_iteration(folder, export.step, export.recipe.sequences_per_step, tensors, max_file_bytes)
        files += write_model_files(folder, export, next(iter(tensors.values())).dtype.name)
    return written(out, files, tensors)


def from_mindformers(folder: Path, run: Path, model: Optional[Path] = None) -> Written:
    """Make a run of the weights that MindFormers has saved, with any layout.

    Args:
        folder: of its checkpoints, or one `iteration_N` in it.
        run: a new or empty folder.
        model: Hugging Face folder with config.json and tokenizer; default `folder`, if it holds them.

    Raises:
        CheckpointError: if `run` cannot be written.
        ConversionError: if a folder is incomplete or damaged, the weights are not those of the model, or `run` is
            taken.
    """
    iteration = find_iteration(Path(folder))
    model = Path(model or folder)
    if not (model / CONFIG).is_file():
        raise ConversionError(
            f"{model}: holds no {CONFIG}, and MindFormers' weights do not say what model they are. Give the Hugging "
            "Face folder that MindFormers' pretrained_model_dir names: --model DIR."
        )
    return import_run(
        Path(run), model, _rules, iteration, lambda: read_tensors(iteration)
    )


def _rules(family: Family) -> tuple[Rule, ...]:
    if not family.mindformers_rules:
        raise ConversionError(
            f"model.family: '{family.name}' has no rules for MindFormers' names. Use `convert to-hf` or `from-hf`."
        )
    return family.mindformers_rules
