"""A training step of a parallel layout as a trace: the partitioned graphs of all ranks, executed one by one in NumPy.

MindSpore compiles each rank for a simulated device; activations, gradients by the weights and new weights are put
together from the slices of all ranks. Gradients are read from Adam's first moment. Floats are float64 whatever the
graph declares, so the compute dtype does not show here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Mapping, Optional, Sequence

import numpy as np

from mindmodel.data.loader import Batch
from mindmodel.debug.traces.inputs import Inputs, filled_up
from mindmodel.debug.traces.trace import LOGITS, Trace, clip_scale, places
from mindmodel.dryrun.compile import Progress, compiled
from mindmodel.dryrun.graph import Graph, TensorType
from mindmodel.dryrun.interpret import Interpreter
from mindmodel.dryrun.prove import Arrays, axes_by_name, jobs_of, joined, joined_parameters, moments_of, one_step
from mindmodel.dryrun.rank import FLOATS
from mindmodel.dryrun.scopes import GRADIENTS, place_of
from mindmodel.errors import TraceError
from mindmodel.models.family import parameter_shapes
from mindmodel.parallel.mesh import Axes, Mesh, Shape, local_slice, mesh_of
from mindmodel.recipe.estimate import known_vocab_size, parameters
from mindmodel.recipe.layout_rules import known
from mindmodel.recipe.rules import resolve_degrees
from mindmodel.recipe.schema import Recipe

MAX_DEVICES = 16
MAX_PARAMETERS = 20_000_000
"""Executed in NumPy: each rank has its slices in float64, three times with the moments."""
LOSS = "loss"
"""Begins the place of operators of the loss, which makes the logits."""
INSIDE = {"causal_attention": "attention", "swiglu": "mlp"}
"""Cells without a name in the scopes, and those around them, of which they are the last part that computes."""


def num_devices_of(recipe: Recipe) -> int:
    """That its layout asks for, with 1 for an automatic degree."""
    return math.prod(map(known, recipe.parallel.degrees.values()))


def sized(recipe: Recipe) -> Recipe:
    """The recipe with the vocabulary's size and all degrees filled in, and without norms, if it can be executed here.

    Raises:
        TraceError: if it has too many ranks or parameters, or only its tokenizer knows the vocabulary's size.
        LayoutError: if the degrees break a rule.
    """
    num_devices, vocab_size = num_devices_of(recipe), known_vocab_size(recipe)
    where = f"recipe '{recipe.name}', a layout of {num_devices} devices"
    if num_devices > MAX_DEVICES:
        raise TraceError(f"{where}: up to {MAX_DEVICES} are executed rank by rank. Use smaller degrees, or --single.")
    if vocab_size is None:
        raise TraceError(f"{where}: only its tokenizer knows the vocabulary's size. Give model.vocab_size.")
    recipe = recipe.with_keys({"model.vocab_size": vocab_size, "log.norms_every": 0})
    count = parameters(recipe.model, vocab_size).total
    if count > MAX_PARAMETERS:
        raise TraceError(
            f"{where}: {count:,} parameters; up to {MAX_PARAMETERS:,} are executed in NumPy. Add --shrink, or --single."
        )
    return resolve_degrees(recipe, num_devices)


def trace_layout(
    recipe: Recipe,
    inputs: Inputs,
    weights: Optional[Mapping[str, np.ndarray]] = None,
    at_once: int = 2,
    progress: Optional[Progress] = None,
) -> Trace:
    """Compile every rank of a recipe and execute one training step.

    Args:
        recipe: as `sized` gives it.
        inputs: of the whole layout.
        weights: whole, by name, to begin with; default: the recipe's fresh ones.
        at_once: ranks compiled at a time.

    Raises:
        TraceError: if the batch is not the recipe's.
        LayoutError: if a rank does not compile, or the graphs cannot be executed.
        BuildError: if there is neither CANN nor a stand-in.
    """
    with compiled(jobs_of(recipe, "rank-"), at_once, progress) as results:
        graphs, slices = zip(*((rank.graph(), rank.slices()) for rank in results.values()))
    return trace_graphs(recipe, graphs, slices, inputs, weights)


def trace_graphs(
    recipe: Recipe,
    graphs: Sequence[Graph],
    slices: Sequence[Mapping[str, np.ndarray]],
    inputs: Inputs,
    weights: Optional[Mapping[str, np.ndarray]] = None,
) -> Trace:
    """As trace_layout, from the graphs of all ranks and their slices of weights and optimizer state."""
    whole = _whole_batch(inputs.batch, recipe)
    found = [_activations(recipe, graph) for graph in graphs]
    keep = [{value.key for value in values.values()} for values in found]
    interpreter = Interpreter(graphs, _cut(recipe, slices, weights or {}), keep=keep)
    losses, norms = one_step(interpreter, whole, inputs.lr)
    gradients = [_gradients(recipe, *rank) for rank in zip(moments_of(interpreter), norms)]
    return Trace(
        source=f"{len(graphs)} ranks executed in NumPy",
        dtype="float32",
        loss=float(np.mean(losses)),
        grad_norm=float(np.mean(norms)),
        lr=inputs.lr,
        batch=inputs.batch,
        tensors={
            "activation": _whole_activations(recipe, found, interpreter.kept, inputs.batch.ids.size),
            "activation_grad": {},
            "weight_grad": _whole(recipe, gradients),
            "weight": _whole(recipe, interpreter.parameters),
        },
    )


def _whole_batch(batch: Batch, recipe: Recipe) -> Batch:
    """Filled up so that it divides."""
    rows, seq_len = recipe.padded_sequences, recipe.data.seq_len
    if batch.ids.shape[0] > rows or batch.ids.shape[1] != seq_len:
        raise TraceError(
            f"recipe '{recipe.name}': its batch is [{rows}, {seq_len}], and {list(batch.ids.shape)} tokens are given. "
            "Use the same data.seq_len and train.tokens_per_step on both sides."
        )
    return filled_up(batch, rows)


def _cut(
    recipe: Recipe, slices: Sequence[Mapping[str, np.ndarray]], weights: Mapping[str, np.ndarray]
) -> list[dict[str, np.ndarray]]:
    """The slices of each rank, with those of whole weights that are given in their place."""
    mesh, axes = mesh_of(recipe.parallel), axes_by_name(recipe, parameter_shapes(recipe.model))
    found = [dict(rank) for rank in slices]
    for name in weights:
        array = weights[name]
        for rank, held in enumerate(found):
            if name in held:
                held[name] = array[local_slice(array.shape, axes[name], mesh, rank)].astype(held[name].dtype)
    return found


def _gradients(recipe: Recipe, moments: Arrays, norm: float) -> Arrays:
    """Of the mean loss, before clipping, from a rank's first moments after the first step."""
    scale = (1.0 - recipe.optim.beta1) * clip_scale(norm, recipe.train.clip_norm)
    return {name: moment / scale for name, moment in moments.items()}


def _whole(recipe: Recipe, ranks: Sequence[Mapping[str, np.ndarray]]) -> Arrays:
    """Every parameter put together from the slices of all ranks, float32."""
    joined_ones = joined_parameters(recipe, parameter_shapes(recipe.model), ranks)
    return {name: whole.astype(np.float32) for name, whole, _ in joined_ones}


@dataclass(frozen=True, kw_only=True)
class _Value:
    """An activation among the values of a rank's graph: its key, and the axes that it is cut over."""

    key: str
    axes: Axes


def _shapes(recipe: Recipe) -> dict[str, Shape]:
    """Of the whole activations, by place."""
    rows = recipe.padded_sequences * recipe.data.seq_len
    return {place: (rows, columns) for place, columns in places(recipe.model).items()}


def _activations(recipe: Recipe, graph: Graph) -> dict[str, _Value]:
    """By place, those that a graph computes in one piece and cuts evenly: none in a pipeline or of micro-batches."""
    mesh, shapes = mesh_of(recipe.parallel), _shapes(recipe)
    if mesh.pp > 1 or recipe.parallel.micro_batches > 1:
        return {}
    cells: dict[str, list[str]] = {}
    for place in shapes:
        cell, _, name = place.rpartition(".")
        cells.setdefault(cell if name in INSIDE else place, []).append(place)
    found: dict[str, _Value] = {}
    backward: set[str] = set()  # values of the backward pass, and what it computes again
    for node in graph.main.nodes:
        if node.scope.startswith(GRADIENTS) or backward.intersection(node.inputs):
            backward.add(node.output)
            continue
        primitive = graph.primitives.get(node.target)
        if primitive is None:
            continue
        cell = place_of(node.scope)
        for place in (LOGITS,) if cell.startswith(LOSS) else _enclosing(cell, cells):
            axes = _axes(node.type, shapes[place], mesh)
            if axes and (place != LOGITS or primitive.name == "MatMul" and LOGITS not in found):
                found[place] = _Value(key=node.output, axes=axes)  # the last one is what the Cell gives
    return found


def _enclosing(cell: str, cells: Mapping[str, list[str]]) -> list[str]:
    """Places of a Cell: its own, or those of the layer whose part it is."""
    own = next((name for name in (cell, cell.rpartition(".")[0]) if name in cells), None)
    return cells[own] if own else []


def _axes(kind: Any, shape: Shape, mesh: Mesh) -> Optional[Axes]:
    """Over which axes an activation is cut, from the type of a rank's; None if it is none."""
    first = kind[0] if isinstance(kind, tuple) and kind else kind
    if not isinstance(first, TensorType) or first.dtype.name not in FLOATS:
        return None
    for rows in (("dp", "cp"), ("dp", "cp", "tp")):
        for columns in (None, "tp"):
            if first.shape == (shape[0] // mesh.degree(rows), shape[1] // mesh.degree(columns)):
                return rows, columns
    return None


def _whole_activations(
    recipe: Recipe, found: Sequence[Mapping[str, _Value]], kept: Sequence[Mapping[str, Any]], rows: int
) -> Arrays:
    """Put together from the slices of all ranks, float32, without rows that fill the batch up."""
    mesh, whole = mesh_of(recipe.parallel), {}
    for place, shape in _shapes(recipe).items():
        axes = {values[place].axes for values in found if place in values}
        if len(axes) == 1 and all(place in values for values in found):
            slices = [{place: _first(arrays[values[place].key])} for values, arrays in zip(found, kept)]
            whole[place] = joined(place, shape, axes.pop(), mesh, 0, slices)[0].astype(np.float32)[:rows]
    return whole


def _first(value: Any) -> np.ndarray:
    return value[0] if isinstance(value, tuple) else value
