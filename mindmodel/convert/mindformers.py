"""Runs to MindFormers' checkpoint folders and back: weights only, tensor by tensor.

MindFormers' optimizers name and lay out their state in other ways, so a training goes on with fresh moments.
"""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from mindmodel.convert.export import Export, export_run
from mindmodel.convert.folder import CONFIG, SHARD_MAX_BYTES
from mindmodel.convert.imported import import_run
from mindmodel.convert.mindformers_folder import find_iteration, read_tensors, write_iteration
from mindmodel.convert.written import Written
from mindmodel.errors import ConversionError
from mindmodel.models.family import Family
from mindmodel.models.weight_rules import Rule
from mindmodel.tensor_file import LazyTensor


def to_mindformers(
    path: Path, out: Path, dtype: Optional[str] = None, max_file_bytes: int = SHARD_MAX_BYTES
) -> Written:
    """Write a run's weights as a folder that MindFormers loads; other arguments and errors are those of `export_run`.

    Args:
        max_file_bytes: a larger model is written as several files.
    """

    def write(folder: Path, export: Export, tensors: dict[str, LazyTensor]) -> list[str]:
        return write_iteration(folder, export.step, export.recipe.sequences_per_step, tensors, max_file_bytes)

    return export_run(path, out, dtype, _rules, write)


def from_mindformers(folder: Path, run: Path, model: Optional[Path] = None) -> Written:
    """Make a run of the weights that MindFormers has saved, with any layout.

    Args:
        folder: of its checkpoints, or one `iteration_N` in it.
        run: a new or empty folder.
        model: Hugging Face folder with config.json and tokenizer; default `folder`.

    Raises:
        CheckpointError: as import_run.
        ConversionError: as import_run; or if there is no config.json.
    """
    iteration, model = find_iteration(folder), model or folder
    if not (model / CONFIG).is_file():
        raise ConversionError(
            f"{model}: holds no {CONFIG}, and MindFormers' weights do not say what model they are. Give the Hugging "
            "Face folder that MindFormers' pretrained_model_dir names: --model DIR."
        )
    return import_run(run, model, _rules, iteration, lambda: read_tensors(iteration))


def _rules(family: Family) -> tuple[Rule, ...]:
    if not family.mindformers_rules:
        raise ConversionError(
            f"model.family: '{family.name}' has no rules for MindFormers' names. Use `convert to-hf` or `from-hf`."
        )
    return family.mindformers_rules
