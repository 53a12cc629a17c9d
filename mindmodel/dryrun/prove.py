"""Whether a layout computes what one device computes: the partitioned graphs of all ranks, executed in NumPy.

Floats are float64, so the two differ by rounding only. Compared are the loss of every step, the gradients of the first
(Adam's first moment holds them), and the weights after the last.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Callable, Mapping, Optional, Sequence

import numpy as np

from mindmodel.dryrun.collectives import CollectiveCall
from mindmodel.dryrun.compile import Compiled, compiled
from mindmodel.dryrun.graph import Graph
from mindmodel.dryrun.interpret import Interpreter
from mindmodel.dryrun.jobs import Job
from mindmodel.errors import LayoutError
from mindmodel.parallel.mesh import Axes, Mesh, local_slice, mesh_of, stage_of
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
class Batches:
    """Global batches: ids and labels int32 [steps, sequences, S]; some labels are ignored."""

    ids: np.ndarray
    labels: np.ndarray


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


def batches_of(recipe: Recipe, seed: int = 7) -> Batches:
    """Random tokens for a recipe with its vocabulary's size filled in."""
    random = np.random.default_rng(seed)
    shape = NUM_STEPS, recipe.padded_sequences, recipe.data.seq_len
    ids = random.integers(0, recipe.model.vocab_size, shape, dtype=np.int32)
    labels = random.integers(0, recipe.model.vocab_size, shape, dtype=np.int32)
    labels[random.random(shape) < 0.1] = -100
    return Batches(ids=ids, labels=labels)


def reference(recipe: Recipe) -> Recipe:
    """The same training step on one device, with nothing recomputed and the batch in one piece."""
    alone, _ = single(recipe)
    plain = dataclasses.replace(alone.parallel, micro_batches=1, recompute="none", recompute_layers=None)
    return dataclasses.replace(alone, parallel=plain)


def jobs_of(recipe: Recipe, prefix: str) -> list[Job]:
    """Every rank of a recipe, for its graph."""
    ranks = range(mesh_of(recipe.parallel).num_devices)
    return [Job(name=f"{prefix}{rank}", recipe=recipe, rank=rank, level=0) for rank in ranks]


def execute(ranks: Sequence[Compiled], batches: Batches) -> Execution:
    """Three training steps of all ranks of a recipe, rank by rank in order."""
    graphs, slices = [rank.graph() for rank in ranks], [rank.slices() for rank in ranks]
    return execute_graphs(graphs, slices, batches)


def execute_graphs(
    graphs: Sequence[Graph], slices: Sequence[Mapping[str, np.ndarray]], batches: Batches
) -> Execution:
    """As execute, from graphs and slices."""
    interpreter = Interpreter(graphs, slices)
    losses, norms, moments, log = [], [], [], []
    for step in range(NUM_STEPS):
        step_losses, step_norms = one_step(interpreter, batches.ids[step], batches.labels[step], LR)
        losses.append(step_losses)
        norms.append(step_norms)
        if step == 0:
            moments = moments_of(interpreter)
            log = list(interpreter.log)
    weights = [{name: array.copy() for name, array in rank.items()} for rank in interpreter.parameters]
    return Execution(losses=losses, norms=norms, moments=moments, weights=weights, log=log)


def one_step(
    interpreter: Interpreter, ids: np.ndarray, labels: np.ndarray, lr: float
) -> tuple[list[float], list[float]]:
    """Execute a training step on a global batch; gives loss and gradient norm, one for each rank."""
    inputs: tuple[np.ndarray, ...] = ids, labels
    if len(interpreter.parameters) == 1:
        inputs = ids, labels, np.asarray(lr)
    else:
        for parameters in interpreter.parameters:
            parameters["num_labels"][...], parameters["lr"][...] = (labels >= 0).sum(), lr
    outputs = interpreter.run([inputs] * len(interpreter.parameters))
    return [float(output[0]) for output in outputs], [float(output[1]) for output in outputs]


def moments_of(interpreter: Interpreter) -> list[Arrays]:
    """Copies of the first moments of each rank, by parameter name."""
    return [
        {name.removeprefix(MOMENT): array.copy() for name, array in rank.items() if name.startswith(MOMENT)}
        for rank in interpreter.parameters
    ]


def axes_by_name(recipe: Recipe, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Axes]:
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
    mesh, plan = mesh_of(recipe.parallel), decoder_plan(recipe.model, recipe.parallel)
    axes = axes_by_name(recipe, {name: array.shape for name, array in before.items()})
    found: list[tuple[str, float]] = []
    loss, norm = _apart(one.losses, many.losses), _apart(one.norms, many.norms)
    copies = 0.0
    worst = {"gradient of": 0.0, "weight": 0.0}
    for kind, single_rank, ranks in (
        ("gradient of", one.moments[0], many.moments), ("weight", one.weights[0], many.weights),
    ):
        for name, start in before.items():
            whole, apart = joined(name, start.shape, axes[name], mesh, plan.stage_of(name), ranks)
            wanted = single_rank[name]
            scale = np.abs(wanted).max() if kind == "gradient of" else np.abs(wanted - start).max()
            difference = _finite(float(np.abs(whole - wanted).max() / (scale or 1.0)))
            copies, worst[kind] = max(copies, apart / (scale or 1.0)), max(worst[kind], difference)
            found.append((f"{kind} {name}", difference))
    found += [("loss", loss), ("gradient norm", norm)]
    return Proof(
        recipe=recipe,
        loss=max(loss, norm),
        gradient=worst["gradient of"],
        weight=worst["weight"],
        copies=copies,
        worst=max(found, key=lambda entry: entry[1]),
    )


def _apart(one: Sequence[Sequence[float]], many: Sequence[Sequence[float]]) -> float:
    """Largest relative difference of a number of each step, which every rank must have."""
    return max(_finite(abs(rank - step[0]) / abs(step[0])) for step, ranks in zip(one, many) for rank in ranks)


def _finite(difference: float) -> float:
    """What is not a number is as far away as can be, where a comparison would pass over it."""
    return difference if np.isfinite(difference) else np.inf


def joined(
    name: str, shape: tuple[int, ...], axes: Axes, mesh: Mesh, stage: int, ranks: Sequence[Mapping[str, np.ndarray]]
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


def prove(recipe: Recipe, at_once: int = 2, progress: Optional[Callable[[int, str], None]] = None) -> Proof:
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
        one, *ranks = (results[job.name] for job in jobs)
        batches, before = batches_of(recipe), one.slices()
        weights = {name: array for name, array in before.items() if f"{MOMENT}{name}" in before}
        return compare(recipe, execute([one], batches), execute(ranks, batches), weights)
