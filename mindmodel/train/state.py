"""Weights and optimizer state between the graph's parameters and named NumPy arrays."""

from __future__ import annotations

from typing import Iterable, Mapping, Optional

import numpy as np
from mindspore import Parameter, Tensor

from mindmodel.checkpoint.load import Checkpoint, in_turn, misfit_message, misfits, shapes_of
from mindmodel.checkpoint.tensor_file import LazyTensor
from mindmodel.errors import CheckpointError
from mindmodel.models.decoder import Decoder
from mindmodel.recipe.schema import Recipe


def tensors_of(parameters: Iterable[Parameter]) -> dict[str, LazyTensor]:
    """Name and content of each parameter, float32, which is fetched when it is read."""
    return {
        parameter.name: LazyTensor(
            shape=tuple(parameter.shape), dtype=np.dtype(np.float32), read=parameter.asnumpy
        )
        for parameter in parameters
    }


def fill(parameters: Iterable[Parameter], arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Set every parameter from the array of its name, as float32.

    Args:
        where: the arrays' origin, for the message.

    Raises:
        CheckpointError: if names or shapes differ, with all differences; nothing is set then.
    """
    named = {parameter.name: parameter for parameter in parameters}
    shapes = {name: tuple(parameter.shape) for name, parameter in named.items()}
    if found := misfits(shapes, shapes_of(arrays)):
        raise CheckpointError(misfit_message(where, found))
    for name, array in in_turn(arrays, list(named)):
        named[name].set_data(Tensor(_own(array)))


def _own(array: np.ndarray) -> np.ndarray:
    """The array in float32, in memory of its own: a view of a file is copied, what was put together is not."""
    return array if array.flags.owndata and array.dtype == np.float32 else np.array(array, dtype=np.float32)


def load_decoder(recipe: Recipe, checkpoint: Checkpoint, seq_len: Optional[int] = None) -> Decoder:
    """The decoder of a run, float32, with the weights of one of its checkpoints.

    Args:
        seq_len: tokens of a sequence; default the recipe's.
    """
    decoder = Decoder(recipe.model, seq_len or recipe.data.seq_len)
    fill(decoder.trainable_params(), checkpoint.weights(), str(checkpoint.path))
    return decoder
