"""A dry run: which ranks of a layout are compiled, and how many at once."""

from __future__ import annotations

from typing import Optional, Sequence

from mindmodel.dryrun.compile import Progress, compiled
from mindmodel.dryrun.jobs import Job
from mindmodel.dryrun.report import RankReport, report_of
from mindmodel.errors import LayoutError
from mindmodel.machine import Memory
from mindmodel.parallel.mesh import Mesh
from mindmodel.parallel.plans.decoder import layer_places
from mindmodel.recipe.schema import Recipe
from mindmodel.terminal import data_size

PROCESS_BYTES = 600 << 20
"""Of MindSpore itself in a process that compiles."""
PARSED_BYTES = 30 << 20
"""Of each layer of the model: stages part behind its first graph. 70B on 8 stages took 3.3 GiB in all."""
LAYER_BYTES = 35 << 20
"""More for each layer of the rank's stage. 32 layers of 7B took 1.9 GiB in all."""
MICRO_BATCH_BYTES = 2 << 20
"""More for each of these and micro-batch, for which their graph is copied. 70B took 4.4 GiB with 64 of them."""


def chosen_ranks(mesh: Mesh, asked: Optional[Sequence[int]] = None) -> tuple[int, ...]:
    """The ranks asked for, else one of the first, the middle and the last stage: those of a stage compile alike.

    Raises:
        LayoutError: if one is none of the mesh.
    """
    for rank in asked or ():
        if not 0 <= rank < mesh.num_devices:
            raise LayoutError(f"rank {rank} is none of {mesh.num_devices} devices. Use 0 to {mesh.num_devices - 1}.")
    return tuple(dict.fromkeys(asked or (mesh.rank(pp=stage) for stage in sorted({0, mesh.pp // 2, mesh.pp - 1}))))


def host_bytes_of(recipe: Recipe) -> int:
    """Host memory, at most, that the compilation of one rank takes: no weights, only graphs."""
    places = layer_places(recipe.model, recipe.parallel)
    stages = [stage for stage, _ in places]
    layers = max(map(stages.count, set(stages)))
    a_layer = LAYER_BYTES + recipe.parallel.micro_batches * MICRO_BATCH_BYTES
    return PROCESS_BYTES + recipe.model.num_layers * PARSED_BYTES + layers * a_layer


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
            f"recipe '{recipe.name}': the compilation of one rank may take {data_size(needed)} of this machine's "
            f"memory, and {data_size(memory.free_bytes)} are free. Free some, or use another machine."
        )
    return min(most, memory.free_bytes // needed)


def dry_run(
    recipe: Recipe, ranks: Sequence[int], at_once: int, progress: Optional[Progress] = None
) -> list[RankReport]:
    """Compile ranks for simulated devices.

    Args:
        recipe: with the vocabulary's size and all degrees filled in.
        ranks: of its mesh.

    Raises:
        LayoutError: if a rank does not compile.
        BuildError: if there is neither CANN nor a stand-in.
    """
    jobs = [Job(name=f"rank {rank}", recipe=recipe, rank=rank, level=1) for rank in ranks]
    with compiled(jobs, at_once, progress) as results:
        return [report_of(results[job.name]) for job in jobs]
