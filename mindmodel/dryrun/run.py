"""A dry run: which ranks of a layout are compiled, how many at once, and what would fit where it does not."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, Callable, Iterator, Optional, Sequence

from mindmodel.dryrun.compile import compiled
from mindmodel.dryrun.jobs import Job
from mindmodel.dryrun.report import RankReport, report_of
from mindmodel.errors import LayoutError
from mindmodel.fleet.memory import estimate_memory
from mindmodel.machine import Memory
from mindmodel.parallel.mesh import Mesh, mesh_of
from mindmodel.parallel.plans.decoder import layer_places
from mindmodel.recipe.layout_rules import LAYOUT_RULES, divisors
from mindmodel.recipe.rules import faults_of
from mindmodel.recipe.schema import Recipe

PROCESS_BYTES = 600 << 20
"""Of MindSpore itself in a process that compiles."""
LAYER_BYTES = 90 << 20
"""That a layer's graph takes while it is compiled, forward and backward: 32 layers of 7B took 2.3 GiB."""
STAGE_LAYER_BYTES = 500 << 20
"""The same where micro-batches share a graph that is copied for each."""

SHARDED = ("none", "states", "gradients", "parameters")
RECOMPUTED = ("none", "selective", "full")
SHOWN_LAYOUTS = 4


def ranks_that_differ(mesh: Mesh) -> tuple[int, ...]:
    """A rank of the first, the middle and the last stage; those of a stage compile alike."""
    return tuple(mesh.rank(pp=stage) for stage in sorted({0, mesh.pp // 2, mesh.pp - 1}))


def host_bytes_of(recipe: Recipe) -> int:
    """Host memory, at most, that the compilation of one rank takes: no weights, only graphs."""
    places = layer_places(recipe.model.num_layers, recipe.parallel)
    stages = [stage for stage, _ in places]
    layers = max(map(stages.count, set(stages)))
    shares_graph = recipe.parallel.micro_batches > 1 or mesh_of(recipe.parallel).pp > 1
    return PROCESS_BYTES + layers * (STAGE_LAYER_BYTES if shares_graph else LAYER_BYTES)


def jobs_at_once(recipe: Recipe, most: int, memory: Optional[Memory]) -> int:
    """How many ranks may be compiled at a time.

    Args:
        most: as far as cores go.
        memory: of this machine; None where it is not known.

    Raises:
        LayoutError: if not even one fits.
    """
    if memory is None:
        return most
    needed = host_bytes_of(recipe)
    if memory.free_bytes < needed:
        raise LayoutError(
            f"recipe '{recipe.name}': the compilation of one rank may take {needed / 2**30:.1f} GiB of this machine's memory, "
            f"and {memory.free_bytes / 2**30:.1f} GiB are free. Free some, use another machine, or a larger parallel.pp."
        )
    return min(most, memory.free_bytes // needed)


def dry_run(
    recipe: Recipe, ranks: Sequence[int], at_once: int, progress: Optional[Callable[[int, str], None]] = None
) -> list[RankReport]:
    """Compile ranks for simulated devices.

    Args:
        recipe: with the vocabulary's size and all degrees filled in.
        progress: as of compile.compiled.

    Raises:
        LayoutError: if a rank does not compile, or is none of the mesh.
        BuildError: if there is neither CANN nor a stand-in.
    """
    num_devices = mesh_of(recipe.parallel).num_devices
    for rank in ranks:
        if not 0 <= rank < num_devices:
            raise LayoutError(f"rank {rank} is none of {num_devices} devices. Use 0 to {num_devices - 1}.")
    jobs = [Job(name=f"rank {rank}", recipe=recipe, rank=rank, level=1) for rank in ranks]
    with compiled(jobs, at_once, progress) as results:
        return [report_of(results[job.name]) for job in jobs]


def layouts_that_fit(recipe: Recipe, usable_bytes: int) -> list[str]:
    """Up to four layouts of as many devices that by the closed form fit, those that change least first."""
    found = []
    for changed in _candidates(recipe):
        other = dataclasses.replace(recipe, parallel=dataclasses.replace(recipe.parallel, **changed))
        if not faults_of(other, LAYOUT_RULES) and _peak(other) <= usable_bytes:
            new = {name: value for name, value in changed.items() if value != getattr(recipe.parallel, name)}
            cost = RECOMPUTED.index(changed["recompute"]), SHARDED.index(changed["shard_optimizer"])
            found.append((len(new), *cost, " ".join(f"parallel.{name}={value}" for name, value in new.items())))
    return [text for *_, text in sorted(found)[:SHOWN_LAYOUTS]]


def _candidates(recipe: Recipe) -> Iterator[dict[str, Any]]:
    """Layouts of as many devices, with no less sharding and recomputation than the recipe's."""
    parallel, mesh = recipe.parallel, mesh_of(recipe.parallel)
    sharded = SHARDED[SHARDED.index(parallel.shard_optimizer):]
    recomputed = RECOMPUTED[RECOMPUTED.index(parallel.recompute):]
    for pp, tp in itertools.product(divisors(mesh.num_devices), repeat=2):
        if pp < mesh.pp or tp < mesh.tp or mesh.num_devices % (pp * tp * mesh.cp):
            continue
        degrees = {"dp": mesh.num_devices // (pp * tp * mesh.cp), "tp": tp, "pp": pp}
        for shard, recompute in itertools.product(sharded, recomputed):
            yield {**degrees, "shard_optimizer": shard, "recompute": recompute}


def _peak(recipe: Recipe) -> int:
    """Largest of all ranks' peaks, by the closed form."""
    ranks = ranks_that_differ(mesh_of(recipe.parallel))
    return max(estimate_memory(recipe, rank).total for rank in ranks)
