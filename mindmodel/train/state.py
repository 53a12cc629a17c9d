"""Weights and optimizer state between the graph's parameters and named NumPy arrays."""

from __future__ import annotations

from typing import Iterable, Mapping, Optional

import numpy as np
from mindspore import Parameter, Tensor

from mindmodel.checkpoint.layout import optimizer_placements, weight_placements
from mindmodel.checkpoint.load import Checkpoint
from mindmodel.checkpoint.tensors import Blocks, Float32Blocks, HeldTensors, in_turn, refuse_misfits, shapes_of
from mindmodel.errors import LayoutError
from mindmodel.models.decoder import Decoder, initial_weight
from mindmodel.models.family import parameter_shapes
from mindmodel.parallel.mesh import mesh_of
from mindmodel.recipe.schema import Recipe
from mindmodel.tensor_file import LazyTensor
from mindmodel.train.build import Built


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
    refuse_misfits(where, shapes, shapes_of(arrays))
    for name, array in in_turn(arrays, list(named)):
        _set(named[name], np.asarray(array, np.float32))


def _set(parameter: Parameter, array: np.ndarray) -> None:
    """MindSpore copies it. A slice stays known as one: else the next graph that is compiled would cut it again."""
    parameter.set_data(Tensor(array), slice_shape=parameter.sliced)


def fresh_weights(recipe: Recipe) -> Float32Blocks:
    """The weights that a run begins with, the same for every layout; one is made at a time."""
    model, shapes = recipe.model, parameter_shapes(recipe.model)
    return Float32Blocks.of_whole(shapes, lambda name: initial_weight(name, shapes[name], model, recipe.train.seed))


def hold_first(built: Built, recipe: Recipe, rank: int, initial: Optional[Float32Blocks]) -> None:
    """Give a rank what a run begins with; moments are zero.

    Args:
        initial: the weights of train.init_from; None for fresh ones.

    Raises:
        CheckpointError, LayoutError: as hold.
    """
    hold(built, recipe, rank, fresh_weights(recipe) if initial is None else initial, where=str(recipe.train.init_from))


def hold(
    built: Built, recipe: Recipe, rank: int, weights: Blocks, optimizer: Optional[Blocks] = None, where: str = ""
) -> None:
    """Give a rank its blocks of weights and optimizer state; of a partitioned step, once it is compiled.

    Args:
        optimizer: default zero, as at the beginning.
        where: the tensors' origin, for the message.

    Raises:
        CheckpointError: if they are not those of the recipe's model; nothing is set then.
        LayoutError: if MindSpore has cut the parameters otherwise than the plan says.
    """
    mesh, placements = mesh_of(recipe.parallel), weight_placements(recipe)
    parameters = built.optimizer.parameters
    held = HeldTensors(weights, placements, mesh, rank, where)
    if built.is_partitioned:
        _refuse_other_cuts(parameters, held.shapes(), built.whole.parallel_parameter_name_list, rank)
    moments: Mapping[str, np.ndarray] = {}
    if optimizer is not None:
        moments = HeldTensors(optimizer, optimizer_placements(placements), mesh, rank, where)
    fill((parameter for parameter in parameters if parameter.name in held), held, where)
    fill((parameter for name, parameter in built.optimizer.state().items() if name in moments), moments, where)
    if built.is_partitioned:
        _clear_others(built)


def _refuse_other_cuts(
    parameters: Iterable[Parameter], planned: Mapping[str, tuple[int, ...]], in_graph: Iterable[str], rank: int
) -> None:
    """What is filled and saved must be what the compiled graph holds."""
    names = set(in_graph)
    cut = {
        parameter.name: tuple(parameter.shape)
        for parameter in parameters
        if parameter.name in names and not parameter.param_info.is_pipeline_shared_param
    }
    differing = sorted(name for name in cut.keys() | planned if cut.get(name) != planned.get(name))
    if differing:
        told = "; ".join(f"'{name}' is {cut.get(name)}, by the plan {planned.get(name)}" for name in differing)
        raise LayoutError(
            f"rank {rank}: MindSpore's compiler has cut parameters otherwise than the plan: {told}. Mend the "
            "ParameterRules and StageRules in mindmodel/parallel/plans; nothing was trained."
        )


def _clear_others(built: Built) -> None:
    """Zero where the graph has parameters without numbers: sums of gradients, fresh moments, and the copy of a tied
    embedding, which its own stage sends before it is used."""
    names = set(built.whole.parallel_parameter_name_list)
    for parameter in built.whole.get_parameters():
        if parameter.has_init and parameter.name in names:
            _set(parameter, np.zeros(parameter.shape, np.float32))


def load_decoder(recipe: Recipe, checkpoint: Checkpoint, seq_len: Optional[int] = None) -> Decoder:
    """The decoder of a run, float32, with the weights of one of its checkpoints.

    Args:
        seq_len: tokens of a sequence; default the recipe's.
    """
    decoder = Decoder(recipe.model, seq_len or recipe.data.seq_len)
    fill(decoder.trainable_params(), checkpoint.weights(), str(checkpoint.path))
    return decoder
