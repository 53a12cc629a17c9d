"""Layouts near a recipe's that fit a device's memory."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any, Iterator

from mindmodel.fleet.memory import MemoryEstimate, estimate_memory
from mindmodel.parallel.mesh import mesh_of
from mindmodel.recipe.layout_rules import LAYOUT_RULES, divisors
from mindmodel.recipe.rules import faults_of
from mindmodel.recipe.schema import ParallelSection, Recipe
from mindmodel.recipe.text import show

COSTS = {
    "micro_batches": 1,
    "sequence_parallel": 1,
    "gathered_tokens": 1,
    "shard_optimizer": 2,
    "tp": 3,
    "pp": 4,
    "recompute": 5,
}
"""Which keys a layout changes first, where it changes as many: those that cost the least speed."""


@dataclass(frozen=True, kw_only=True)
class FittingLayout:
    """A layout that fits.

    Attributes:
        recipe: with its degrees.
        changes: `parallel.key=value` of the keys that differ, as on a command line.
        peak: of the rank that needs most.
    """

    recipe: Recipe
    changes: tuple[str, ...]
    peak: MemoryEstimate


def highest_estimate(recipe: Recipe) -> MemoryEstimate:
    """Of the rank that needs most memory; ranks of a stage need the same.

    Args:
        recipe: with the vocabulary's size and all degrees filled in.
    """
    mesh = mesh_of(recipe.parallel)
    stages = (estimate_memory(recipe, stage * mesh.stage_size) for stage in range(mesh.pp))
    return max(stages, key=lambda estimate: estimate.total)


def fitting_layouts(recipe: Recipe, num_devices: int, usable_bytes: int, limit: int = 3) -> tuple[FittingLayout, ...]:
    """The layouts of all devices nearest to a recipe's that fit, those that change fewest keys first.

    Of those that change the same keys the one that changes them least; none that changes more keys than it must.

    Batch, model and context parallelism stay; dp takes the devices that are left.

    Args:
        recipe: with the vocabulary's size and all degrees filled in; whether it fits does not matter.
        num_devices: of the whole job.
        usable_bytes: of one device.
        limit: how many layouts, at least 1.
    """
    found: dict[tuple[str, ...], FittingLayout] = {}
    for parallel in sorted(_candidates(recipe, num_devices), key=lambda new: _distance(recipe.parallel, new)):
        near, keys = dataclasses.replace(recipe, parallel=parallel), tuple(_changed(recipe.parallel, parallel))
        if any(set(fewer) <= set(keys) for fewer in found) or faults_of(near, LAYOUT_RULES):
            continue
        peak = highest_estimate(near)
        if peak.total <= usable_bytes:
            found[keys] = FittingLayout(recipe=near, changes=_changes(recipe.parallel, parallel), peak=peak)
            if len(found) == limit:
                break
    return tuple(found.values())


def _candidates(recipe: Recipe, num_devices: int) -> Iterator[ParallelSection]:
    """Degrees that make the devices, each with ways to need less memory."""
    old, per_node = recipe.parallel, recipe.runtime.devices_per_node
    for tp, pp in itertools.product(_at_most(num_devices, max(per_node, int(old.tp))), _at_most(num_devices, 64)):
        if num_devices % (tp * pp * int(old.cp)):
            continue
        dp = num_devices // (tp * pp * int(old.cp))
        degrees = dataclasses.replace(old, dp=dp, tp=tp, pp=pp)
        if pp != old.pp:
            degrees = dataclasses.replace(degrees, stages=None, interleave=1)
        yield from _variants(degrees, recipe.sequences_per_step)


def _at_most(number: int, most: int) -> list[int]:
    return [divisor for divisor in divisors(number) if divisor <= most]


def _variants(parallel: ParallelSection, sequences: int) -> Iterator[ParallelSection]:
    """The same degrees with more micro-batches, and with more that is split or computed again."""
    alone = parallel.dp == parallel.cp == 1
    levels = ("none",) if alone else dict.fromkeys((parallel.shard_optimizer, "states", "gradients"))
    choices: dict[str, tuple[Any, ...]] = {
        "micro_batches": tuple(_micro_batches(parallel, sequences)),
        "sequence_parallel": (False,) if parallel.tp == 1 else tuple({parallel.sequence_parallel, True}),
        "gathered_tokens": tuple(dict.fromkeys((parallel.gathered_tokens, "again"))),
        "shard_optimizer": tuple(levels),
        "recompute": tuple(dict.fromkeys((parallel.recompute, "selective", "full"))),
    }
    for values in itertools.product(*choices.values()):
        new = dataclasses.replace(parallel, **dict(zip(choices, values)))
        whole = new.recompute != parallel.recompute
        yield dataclasses.replace(new, recompute_layers=None) if whole else new


def _micro_batches(parallel: ParallelSection, sequences: int) -> Iterator[int]:
    """As they are, as many as fill the pipeline, and doubled until one sequence is left for each."""
    number = max(parallel.micro_batches, int(parallel.pp))
    while number * int(parallel.dp) <= sequences:
        yield number
        number *= 2


def _changed(old: ParallelSection, new: ParallelSection) -> list[str]:
    """Keys that differ; dp follows from the others."""
    names = [field.name for field in dataclasses.fields(ParallelSection) if field.name != "dp"]
    return [name for name in names if getattr(old, name) != getattr(new, name)]


def _distance(old: ParallelSection, new: ParallelSection) -> tuple[int, int, int]:
    """Keys that differ, what they cost, and how far they go."""
    changed = _changed(old, new)
    far = new.micro_batches + 1000 * (new.recompute == "full") + int(new.tp) + int(new.pp)
    return len(changed), sum(COSTS.get(name, 0) for name in changed), far


def _changes(old: ParallelSection, new: ParallelSection) -> tuple[str, ...]:
    names = ["dp", *_changed(old, new)] if old.dp != new.dp else _changed(old, new)
    return tuple(f"parallel.{name}={show(getattr(new, name))}" for name in names)
