"""Weights to begin with from another run, a checkpoint, or a Hugging Face folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Iterator, Mapping

import numpy as np

from mindmodel.checkpoint.run_folder import RunFolder, resolve_weights
from mindmodel.checkpoint.tensor_file import LazyTensor
from mindmodel.convert.folder import CONFIG, GENERATION_CONFIG, read_config, read_tensors
from mindmodel.convert.rules import to_ours
from mindmodel.errors import CheckpointError
from mindmodel.files import copy_file
from mindmodel.models.family import family_of, parameter_shapes
from mindmodel.recipe.dump import recipe_to_dict
from mindmodel.recipe.schema import Recipe

NOT_COMPARED = ("init_std",)


class _Read(Mapping[str, np.ndarray]):
    """Lazy tensors as a mapping to arrays, one in memory at a time."""

    def __init__(self, tensors: Mapping[str, LazyTensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _refuse_other_model(where: Path, theirs: Mapping[str, Any], recipe: Recipe) -> None:
    ours = recipe_to_dict(recipe)["model"]
    found = [
        f"{name} is {theirs.get(name)} there and {value} in the recipe"
        for name, value in ours.items()
        if name not in NOT_COMPARED and theirs.get(name) != value
    ]
    if found:
        raise CheckpointError(
            f"train.init_from={where}: another architecture: {'; '.join(found)}. Change the recipe's model."
        )


def initial_weights(recipe: Recipe) -> Mapping[str, np.ndarray]:
    """Weights by parameter name from `train.init_from`.

    Raises:
        CheckpointError, ConversionError: if there is nothing of the kind, or it is damaged or of another architecture.
    """
    path = Path(str(recipe.train.init_from))
    if not (path / CONFIG).is_file():
        _, checkpoint = resolve_weights(path)
        _refuse_other_model(path, checkpoint.index.recipe["model"], recipe)
        return checkpoint.weights()
    config = read_config(path)
    family = family_of(config, path / CONFIG)
    model = family.read_config(config, path / CONFIG)
    _refuse_other_model(path, dataclasses.asdict(model), recipe)
    return _Read(to_ours(family.rules, model, parameter_shapes(model), read_tensors(path), path))


def keep_origin(recipe: Recipe, run: RunFolder) -> None:
    """Copy the configuration of an imported model into the run that begins with it.

    The export of the run then restores what only that file says: unused rows of the vocabulary, the longest context.
    """
    path = Path(str(recipe.train.init_from))
    origin = path if (path / CONFIG).is_file() else resolve_weights(path)[0].huggingface
    for name in (CONFIG, GENERATION_CONFIG):
        if (origin / name).is_file():
            run.huggingface.mkdir(exist_ok=True)
            copy_file(origin / name, run.huggingface / name)
