"""Weights and optimizer state between the graph's parameters and named NumPy arrays."""

from __future__ import annotations

from typing import Iterable, Mapping, Optional

import numpy as np
from mindspore import Parameter, Tensor

from mindmodel.checkpoint.load import Checkpoint
from mindmodel.checkpoint.tensor_file import LazyTensor
from mindmodel.errors import CheckpointError
from mindmodel.models.decoder import Decoder
from mindmodel.recipe.schema import Recipe

SHOWN_DIFFERENCES = 20


def arrays_of(parameters: Iterable[Parameter]) -> dict[str, np.ndarray]:
    """Name and content of each parameter."""
    return {parameter.name: parameter.asnumpy() for parameter in parameters}


def tensors_of(parameters: Iterable[Parameter]) -> dict[str, LazyTensor]:
    """Name and content of each parameter, float32, which is fetched when it is read."""
    return {
        parameter.name: LazyTensor(
            shape=tuple(parameter.shape), dtype=np.dtype(np.float32), read=parameter.asnumpy
        )
        for parameter in parameters
    }


def _differences(parameters: Mapping[str, Parameter], arrays: Mapping[str, np.ndarray]) -> list[str]:
    found = [f"'{name}' is missing" for name in parameters if name not in arrays]
    found += [f"'{name}' is left over" for name in arrays if name not in parameters]
    for name in parameters.keys() & arrays.keys():
        if tuple(parameters[name].shape) != tuple(arrays[name].shape):
            found.append(f"'{name}' is {list(arrays[name].shape)}, the model has {list(parameters[name].shape)}")
    return sorted(found)


def fill(parameters: Iterable[Parameter], arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Set every parameter from the array of its name, as float32.

    Args:
        where: the arrays' origin, for the message.

    Raises:
        CheckpointError: if names or shapes differ; nothing is set then.
    """
    named = {parameter.name: parameter for parameter in parameters}
    found = _differences(named, arrays)
    if found:
        more = len(found) - SHOWN_DIFFERENCES
        shown = "; ".join(found[:SHOWN_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
        raise CheckpointError(f"{where}: does not fit this recipe's model: {shown}. Use the recipe it was made with.")
    for name, parameter in named.items():
        parameter.set_data(Tensor(np.array(arrays[name], dtype=np.float32)))


def load_decoder(recipe: Recipe, checkpoint: Checkpoint, seq_len: Optional[int] = None) -> Decoder:
    """The decoder of a run, float32, with the weights of one of its checkpoints.

    Args:
        seq_len: tokens of a sequence; default the recipe's.
    """
    decoder = Decoder(recipe.model, seq_len or recipe.data.seq_len)
    fill(decoder.trainable_params(), checkpoint.weights(), str(checkpoint.path))
    return decoder
