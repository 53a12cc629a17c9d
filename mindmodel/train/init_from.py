"""Weights to begin with from another run, a checkpoint, or a Hugging Face folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mindmodel.checkpoint.index import INDEX_NAME
from mindmodel.checkpoint.run_folder import RunFolder, resolve_weights
from mindmodel.checkpoint.tensors import Float32Blocks
from mindmodel.convert.folder import CONFIG, GENERATION_CONFIG, read_model, read_tensors
from mindmodel.convert.written import copy_files
from mindmodel.errors import CheckpointError
from mindmodel.models.family import architecture_differences, parameter_shapes
from mindmodel.models.weight_rules import to_ours
from mindmodel.recipe.load import recipe_from_dict
from mindmodel.recipe.schema import ModelSection, Recipe


@dataclass(frozen=True, kw_only=True)
class Initial:
    """What a run begins with.

    Attributes:
        weights: by parameter name.
        origin: the folder of the configuration that they were imported with; it may be missing.
    """

    weights: Float32Blocks
    origin: Path


def _refuse_other_model(where: Path, theirs: ModelSection, ours: ModelSection) -> None:
    found = architecture_differences(theirs, ours)
    if found:
        told = "; ".join(f"{name} is {value} there and {wanted} in the recipe" for name, value, wanted in found)
        raise CheckpointError(f"train.init_from={where}: another architecture: {told}. Change the recipe's model.")


def initial_weights(recipe: Recipe) -> Initial:
    """The weights of `train.init_from`.

    Raises:
        CheckpointError, ConversionError: if there is nothing of the kind, or it is damaged or of another architecture.
    """
    path = Path(str(recipe.train.init_from))
    if not (path / CONFIG).is_file():
        run, checkpoint = resolve_weights(path)
        theirs = recipe_from_dict(checkpoint.index.recipe, checkpoint.path / INDEX_NAME)
        _refuse_other_model(path, theirs.model, recipe.model)
        weights = checkpoint.weights()
        blocks = Float32Blocks(weights.shapes(), weights.block, weights.fetch)
        return Initial(weights=blocks, origin=run.huggingface)
    _, family, model = read_model(path)
    _refuse_other_model(path, model, recipe.model)
    tensors = to_ours(family.rules, model, parameter_shapes(model), read_tensors(path), path)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    return Initial(weights=Float32Blocks.of_whole(shapes, lambda name: tensors[name].read()), origin=path)


def keep_origin(initial: Initial, run: RunFolder) -> None:
    """Copy the configuration of an imported model into the run that begins with it.

    The export of the run then restores what only that file says: unused rows of the vocabulary, the longest context.
    """
    copy_files(initial.origin, run.huggingface, (CONFIG, GENERATION_CONFIG))
