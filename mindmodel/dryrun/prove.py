"""Whether a layout computes what one device computes: the partitioned graphs of all ranks, executed in NumPy.

Floats are float64, so the two differ by rounding only. Compared are the loss of every step, the gradients of the first
(Adam's first moment holds them), and the weights after the last.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Iterator, Mapping, Optional, Sequence

import numpy as np

from mindmodel.data.loader import IGNORED, Batch
from mindmodel.dryrun.collectives import CollectiveCall
from mindmodel.dryrun.compile import Progress, compiled
from mindmodel.dryrun.graph import Graph
from mindmodel.dryrun.interpret import Interpreter
from mindmodel.dryrun.jobs import Job
from mindmodel.errors import LayoutError
from mindmodel.parallel.mesh import Axes, Mesh, Shape, local_slice, mesh_of, stage_of
from mindmodel.parallel.plan import held_axes
from mindmodel.parallel.plans.decoder import decoder_plan
from mindmodel.recipe.schema import Recipe
from mindmodel.recipe.shrink import single

NUM_STEPS = 3
TOLERANCE = 1e-10
"""Largest relative difference of a layout that is right; float64's rounding over three steps stays 30 times below."""

MOMENT = "first_moment."
LR = 1e-3

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Execution:
    """What a layout computed.

    Attributes:
        losses, norms: of every step, one for each rank.
        moments: first moments after the first step, of each rank by parameter name.
        weights: parameters after the last step, of each rank by name.
        log: collectives of the first step.
    """

    losses: Sequence[Sequence[float]]
    norms: Sequence[Sequence[float]]
    moments: Sequence[Arrays]
    weights: Sequence[Arrays]
    log: Sequence[CollectiveCall]


@dataclass(frozen=True, kw_only=True)
class Proof:
    """How far a layout is from one device.

    Attributes:
        recipe: that was executed.
        loss: largest relative difference of a loss or a gradient norm.
        gradient: largest difference of a gradient over its largest entry.
        weight: largest difference of a weight over the distance that its tensor moved.
        copies: largest difference between ranks that hold the same slice.
        worst: the tensor that differs most, and its difference.
    """

    recipe: Recipe
    loss: float
    gradient: float
    weight: float
    copies: float
    worst: tuple[str, float]

    @property
    def holds(self) -> bool:
        """Whether the layout is right."""
        return max(self.loss, self.gradient, self.weight, self.copies) <= TOLERANCE


def batches_of(recipe: Recipe) -> list[Batch]:
    """A global batch of random tokens for every step; some labels do not count. The vocabulary's size is filled in."""
    random = np.random.default_rng(7)
    shape = NUM_STEPS, recipe.padded_sequences, recipe.data.seq_len
    ids = random.integers(0, recipe.model.vocab_size, shape, dtype=np.int32)
    labels = random.integers(0, recipe.model.vocab_size, shape, dtype=np.int32)
    labels[random.random(shape) < 0.1] = IGNORED
    return [Batch(ids=step, labels=step_labels) for step, step_labels in zip(ids, labels)]


def reference(recipe: Recipe) -> Recipe:
    """The same training step on one device, with nothing recomputed and the batch in one piece."""
    alone, _ = single(recipe)
    plain = dataclasses.replace(alone.parallel, micro_batches=1, recompute="none", recompute_layers=None)
    return dataclasses.replace(alone, parallel=plain)


def jobs_of(recipe: Recipe, prefix: str) -> list[Job]:
    """Every rank of a recipe, for its graph."""
    ranks = range(mesh_of(recipe.parallel).num_devices)
    return [Job(name=f"{prefix}{rank}", recipe=recipe, rank=rank, level=0) for rank in ranks]


def execute(
    graphs: Sequence[Graph], slices: Sequence[Mapping[str, np.ndarray]], batches: Sequence[Batch]
) -> Execution:
    """Training steps of all ranks of a recipe, rank by rank in order, from their graphs and slices."""
    interpreter = Interpreter(graphs, slices)
    losses, norms, moments, log = [], [], [], []
    for step, batch in enumerate(batches):
        step_losses, step_norms = one_step(interpreter, batch, LR)
        losses.append(step_losses)
        norms.append(step_norms)
        if step == 0:
            moments = moments_of(interpreter)
            log = list(interpreter.log)
    weights = [{name: array.copy() for name, array in rank.items()} for rank in interpreter.parameters]
    return Execution(losses=losses, norms=norms, moments=moments, weights=weights, log=log)


def one_step(interpreter: Interpreter, batch: Batch, lr: float) -> tuple[list[float], list[float]]:
    """Execute a training step on a global batch; gives losses and gradient norms, one for each rank."""
    outputs = outputs_of_step(interpreter, batch, lr)
    return [float(output[0]) for output in outputs], [float(output[1]) for output in outputs]


def outputs_of_step(interpreter: Interpreter, batch: Batch, lr: float) -> list[Sequence[np.ndarray]]:
    """Execute a training step on a global batch; gives what each rank gives."""
    inputs: tuple[np.ndarray, ...] = batch.ids, batch.labels
    if len(interpreter.parameters) == 1:
        inputs = *inputs, np.asarray(lr)
    else:
        for parameters in interpreter.parameters:
            parameters["num_labels"][...], parameters["lr"][...] = (batch.labels >= 0).sum(), lr
    return interpreter.run([inputs] * len(interpreter.parameters))


def moments_of(interpreter: Interpreter) -> list[Arrays]:
    """Copies of the first moments of each rank, by parameter name."""
    return [
        {name.removeprefix(MOMENT): array.copy() for name, array in rank.items() if name.startswith(MOMENT)}
        for rank in interpreter.parameters
    ]


def axes_by_name(recipe: Recipe, shapes: Mapping[str, Shape]) -> dict[str, Axes]:
    """Over which axes each parameter of a recipe is cut, optimizer sharding included."""
    mesh, plan = mesh_of(recipe.parallel), decoder_plan(recipe.model, recipe.parallel)
    sharded = recipe.parallel.shard_optimizer != "none"
    return {name: held_axes(plan, name, shape, mesh, sharded) for name, shape in shapes.items()}


def compare(recipe: Recipe, one: Execution, many: Execution, before: Mapping[str, np.ndarray]) -> Proof:
    """Hold what a layout computed against one device.

    Args:
        recipe: of the layout.
        before: the whole weights at the start.
    """
    largest = {name: np.abs(one.moments[0][name]).max() for name in before}
    moved = {name: np.abs(one.weights[0][name] - start).max() for name, start in before.items()}
    gradients, copies = _differences(recipe, one.moments[0], many.moments, largest)
    weights, more_copies = _differences(recipe, one.weights[0], many.weights, moved)
    found = {f"gradient of {name}": number for name, number in gradients.items()}
    found.update((f"weight {name}", number) for name, number in weights.items())
    loss, norm = _apart(one.losses, many.losses), _apart(one.norms, many.norms)
    found.update({"loss": loss, "gradient norm": norm})
    return Proof(
        recipe=recipe,
        loss=max(loss, norm),
        gradient=max(gradients.values()),
        weight=max(weights.values()),
        copies=max(copies, more_copies),
        worst=max(found.items(), key=lambda entry: entry[1]),
    )


def _differences(
    recipe: Recipe, alone: Arrays, ranks: Sequence[Arrays], scales: Mapping[str, float]
) -> tuple[dict[str, float], float]:
    """Of each tensor from that of one device, and the largest between copies; both over the tensor's scale."""
    found, copies = {}, 0.0
    for name, whole, apart in joined_parameters(recipe, {name: alone[name].shape for name in scales}, ranks):
        scale = scales[name] or 1.0
        found[name] = _finite(float(np.abs(whole - alone[name]).max() / scale))
        copies = max(copies, apart / scale)
    return found, copies


def _apart(one: Sequence[Sequence[float]], many: Sequence[Sequence[float]]) -> float:
    """Largest relative difference of a number of each step, which every rank must have."""
    return max(_finite(abs(rank - step[0]) / (abs(step[0]) or 1.0)) for step, ranks in zip(one, many) for rank in ranks)


def _finite(difference: float) -> float:
    """What is not a number is as far away as can be, where a comparison would pass over it."""
    return difference if np.isfinite(difference) else np.inf


def joined_parameters(
    recipe: Recipe, shapes: Mapping[str, Shape], ranks: Sequence[Mapping[str, np.ndarray]]
) -> Iterator[tuple[str, np.ndarray, float]]:
    """Of each parameter its name, the whole of it, and the largest difference between copies, as `joined` gives them.

    Args:
        shapes: of the whole parameters, by name.
        ranks: the slices of each rank, by name.
    """
    mesh, plan = mesh_of(recipe.parallel), decoder_plan(recipe.model, recipe.parallel)
    for name, axes in axes_by_name(recipe, shapes).items():
        yield name, *joined(name, shapes[name], axes, mesh, plan.stage_of(name), ranks)


def joined(
    name: str, shape: Shape, axes: Axes, mesh: Mesh, stage: int, ranks: Sequence[Mapping[str, np.ndarray]]
) -> tuple[np.ndarray, float]:
    """The whole tensor from the slices of a stage, NaN where none has it; and the largest difference between copies.

    Of copies that differ it has the mean, in which none is hidden.

    Raises:
        LayoutError: if a rank holds a slice of another shape than by the plan.
    """
    total, count = np.zeros(shape), np.zeros(shape)
    holders = [rank for rank, arrays in enumerate(ranks) if name in arrays and stage_of(rank, mesh) == stage]
    places = {rank: local_slice(shape, axes, mesh, rank) for rank in holders}
    for rank, place in places.items():
        if total[place].shape != ranks[rank][name].shape:
            raise LayoutError(
                f"{name}: rank {rank} holds {list(ranks[rank][name].shape)}, and by the plan "
                f"{list(total[place].shape)}."
            )
        total[place] += ranks[rank][name]
        count[place] += 1
    with np.errstate(invalid="ignore"):
        whole = total / count
    apart = [_finite(float(np.abs(whole[place] - ranks[rank][name]).max())) for rank, place in places.items()]
    return whole, max(apart, default=0.0)


def prove(recipe: Recipe, at_once: int = 2, progress: Optional[Progress] = None) -> Proof:
    """Compile every rank of a small recipe and hold it against one device.

    Args:
        recipe: with the vocabulary's size and all degrees filled in; small, since it is executed in NumPy.
        at_once: ranks compiled at a time.

    Raises:
        LayoutError: if a rank does not compile, or the graphs cannot be executed: a deadlock, for instance.
        BuildError: if there is neither CANN nor a stand-in.
    """
    jobs = [*jobs_of(reference(recipe), "one-"), *jobs_of(recipe, "rank-")]
    with compiled(jobs, at_once, progress) as results:
        graphs, slices = zip(*((rank.graph(), rank.slices()) for rank in results.values()))
    before = {name: array for name, array in slices[0].items() if f"{MOMENT}{name}" in slices[0]}
    batches = batches_of(recipe)
    one, many = execute(graphs[:1], slices[:1], batches), execute(graphs[1:], slices[1:], batches)
    return compare(recipe, one, many, before)
