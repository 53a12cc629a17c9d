"""A run made of another library's weights: recipe, tokenizer, and a checkpoint `step_0` of the weights as they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Callable, Mapping

from mindmodel import __version__
from mindmodel.checkpoint.run_folder import RunFolder
from mindmodel.checkpoint.save import save_checkpoint
from mindmodel.convert.export import RulesOf
from mindmodel.convert.folder import CONFIG, GENERATION_CONFIG, read_model
from mindmodel.convert.written import Written, check_free, copy_files, written
from mindmodel.data.tokenizer import TOKENIZER_FILES
from mindmodel.errors import ConversionError
from mindmodel.files import write_folder_safely, write_text_safely
from mindmodel.models.family import parameter_shapes
from mindmodel.models.weight_rules import to_ours
from mindmodel.recipe.dump import recipe_to_dict, recipe_to_yaml
from mindmodel.recipe.rules import faults_of
from mindmodel.recipe.schema import (
    CheckpointSection,
    DataSection,
    LogSection,
    ModelSection,
    OptimSection,
    ParallelSection,
    Recipe,
    RuntimeSection,
    TrainSection,
)
from mindmodel.tensor_file import LazyTensor

IMPORTED_SEQ_LEN_MAX = 1024


def import_run(
    run: Path,
    model: Path,
    rules_of: RulesOf,
    weights: Path,
    read: Callable[[], Mapping[str, LazyTensor]],
) -> Written:
    """Make a run of weights as they are and of the Hugging Face files that describe their model.

    Args:
        run: a new or empty folder.
        model: folder with config.json, and the tokenizer if there is one.
        rules_of: between our parameters and the tensors, by family.
        weights: what the tensors are from, for messages.
        read: gives the tensors by name.

    Raises:
        CheckpointError: if `run` cannot be written.
        ConversionError: if a folder is incomplete or damaged, the weights are not the model's, the model is beyond what
            the decoder can do, or `run` is taken.
    """
    check_free(run)
    config, family, section = read_model(model)
    recipe = _recipe(config, section, model / CONFIG, run)
    ours = to_ours(rules_of(family), recipe.model, parameter_shapes(recipe.model), read(), weights)
    with write_folder_safely(run) as temporary:
        files = _fill_run(RunFolder(temporary), recipe, ours, model)
    return written(run, files, ours)


def _recipe(config: Mapping[str, Any], model: ModelSection, where: Path, run: Path) -> Recipe:
    """A recipe that names the imported model; its training keys are only there to be overridden."""
    positions = config.get("max_position_embeddings", IMPORTED_SEQ_LEN_MAX)
    if type(positions) is not int or positions < 2:
        raise ConversionError(f"{where}, max_position_embeddings: {positions!r} is not a number of tokens above 1.")
    seq_len = min(positions, IMPORTED_SEQ_LEN_MAX)
    recipe = Recipe(
        name=re.sub(r"[^\w+-]", "_", run.resolve().name),
        model=model,
        data=DataSection(tokenizer=str(RunFolder(run).tokenizer), seq_len=seq_len),
        parallel=ParallelSection(),
        train=TrainSection(steps=1, tokens_per_step=seq_len),
        optim=OptimSection(),
        checkpoint=CheckpointSection(),
        runtime=RuntimeSection(output=str(run)),
        log=LogSection(),
    )
    faults = [f"{where}, {fault.key}: {fault.text}" for fault in faults_of(recipe) if fault.key.startswith("model.")]
    if faults:
        raise ConversionError("\n".join(faults))
    return recipe


def _fill_run(run: RunFolder, recipe: Recipe, weights: Mapping[str, LazyTensor], source: Path) -> list[str]:
    """Write a whole run into an empty folder; the names of its parts."""
    checkpoint = save_checkpoint(
        run.checkpoints,
        step=0,
        samples=0,
        tokens=0,
        weights=weights,
        optimizer={},
        recipe=recipe_to_dict(recipe),
        versions={"mindmodel": __version__},
        random={},
        layout={"dp": 1, "tp": 1, "pp": 1, "cp": 1},
        keep=1,
        keep_every=0,
    )
    copy_files(source, run.huggingface, (CONFIG, GENERATION_CONFIG))
    copy_files(source, run.tokenizer, TOKENIZER_FILES)
    write_text_safely(run.recipe_file, recipe_to_yaml(recipe))
    parts = [path for path in run.path.iterdir() if path != run.checkpoints]
    return sorted(str(path.relative_to(run.path)) for path in (*parts, checkpoint))
