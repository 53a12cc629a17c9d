"""A plan applied to a model's Cells: the only file that calls MindSpore's parallel API."""

from __future__ import annotations

import math
from typing import Iterable, Iterator

from mindspore import Layout, Parameter, nn
from mindspore.ops import Morph, Primitive, Reshape
from mindspore.parallel.auto_parallel import AutoParallel
from mindspore.parallel.nn import GradAccumulation, Pipeline

from mindmodel.models.decoder import DTYPES
from mindmodel.parallel.local_layers import LAYERS, LocalLayer, Seen, ThisRank
from mindmodel.parallel.mesh import Mesh, mesh_of, names, stage_of
from mindmodel.parallel.plan import Cuts, LayoutRule, Plan, held_axes, match, match_all
from mindmodel.recipe.schema import AXES, ParallelSection

OPTIMIZER_LEVELS = {"states": "level1", "gradients": "level2", "parameters": "level3"}


def operators(network: nn.Cell) -> Iterator[tuple[str, Primitive]]:
    """Every operator that is an attribute of the network's Cells, with its path."""
    for path, cell in network.cells_and_names():
        for name, primitive in cell._primitives.items():
            if primitive is not None:
                yield f"{path}.{name}".lstrip("."), primitive


def cut_operators(network: nn.Cell) -> list[str]:
    """Paths of those that a plan cuts: not reshapes, which follow by themselves, nor what sees a rank's slices."""
    cells = dict(network.cells_and_names())

    def is_cut(path: str, operator: Primitive) -> bool:
        if isinstance(cells[path.rpartition(".")[0]], LocalLayer):
            return isinstance(operator, Morph)
        return not isinstance(operator, Reshape)

    return [path for path, operator in operators(network) if is_cut(path, operator)]


def put_local_layers(network: nn.Cell, plan: Plan, here: ThisRank) -> None:
    """Put layers of this rank in place of the model's, before its operators are cut.

    Raises:
        LayoutError: if a rule names nothing.
    """
    cells = dict(network.cells_and_names())
    for path, rule in match(cells, plan.local, "layer"):
        parent, _, name = path.rpartition(".")
        setattr(cells[parent], name, LAYERS[rule.layer](cells[path], here))


def apply_plan(network: nn.Cell, plan: Plan, mesh: Mesh) -> None:
    """Cut the operators of a network that stands on one device, and say what is computed again and where.

    Args:
        network: the Cells down from which the plan's paths lead.

    Raises:
        LayoutError: if an operator has no rule or two, or a rule names nothing.
    """
    cells, found = dict(network.cells_and_names()), dict(operators(network))
    for path, rule in match_all(cut_operators(network), plan.layouts, "operator").items():
        _shard(found[path], rule, mesh)
    for path, stage in match(cells, plan.stages, "layer"):
        cells[path].pipeline_stage = stage.stage
        cells[path].pipeline_segment = stage.chunk
    again = {**cells, **found}
    for path, _ in match(again, plan.recompute, "layer"):
        again[path].recompute()
    for path, copied in match(cells, plan.copies, "layer"):
        cells[path].kv_copies = copied.copies


def _shard(operator: Primitive, rule: LayoutRule, mesh: Mesh) -> None:
    if isinstance(operator, Morph):
        operator.add_prim_attr("self_define_shard", True)
        operator.shard(*(tuple(_layout(cuts, mesh) for cuts in side) for side in (rule.inputs, rule.outputs or ())))
        return
    inputs = tuple(_pieces(cuts, mesh) for cuts in rule.inputs)
    outputs = None if rule.outputs is None else tuple(_pieces(cuts, mesh) for cuts in rule.outputs)
    operator.shard(inputs, outputs)


def _pieces(cuts: Cuts, mesh: Mesh) -> tuple[int, ...]:
    return tuple(cut if isinstance(cut, int) else mesh.degree(cut) for cut in cuts)


def _layout(cuts: Cuts, mesh: Mesh) -> Layout:
    """As MindSpore wants it for a function of slices."""
    used = AXES[1:]
    aliases = [names(cut) for cut in cuts if not isinstance(cut, int)]
    grid = Layout(tuple(mesh.degree(name) for name in used), used)
    return grid(*("None" if not alias else alias[0] if len(alias) == 1 else alias for alias in aliases))


def lay_out(network: nn.Cell, plan: Plan, parallel: ParallelSection, rank: int, compute_dtype: str) -> None:
    """Cut the operators of a network for one device as the plan says, for a rank of the mesh.

    Raises:
        LayoutError: as apply_plan.
    """
    mesh = mesh_of(parallel)
    put_local_layers(network, plan, ThisRank(mesh=mesh, rank=rank, parallel=parallel, dtype=DTYPES[compute_dtype]))
    apply_plan(network, plan, mesh)


def see_activations(network: nn.Cell, plan: Plan, parallel: ParallelSection) -> tuple[Parameter, ...]:
    """Parameters whose gradients are the sums of squares of what the plan's Cells give, of a network that is laid out.

    Raises:
        LayoutError: if a rule names nothing.
    """
    mesh, cells, found = mesh_of(parallel), dict(network.cells_and_names()), []
    for path, rule in match(cells, plan.seen, "layer"):
        parent, _, name = path.rpartition(".")
        pieces = math.prod(mesh.degree(axis) for axis in rule.axes)
        seen = Seen(cells[path], path.partition(".")[2], mesh.stage_size // pieces)
        seen.same.add_prim_attr("self_define_shard", True)
        whole = _layout((None,), mesh)
        seen.same.shard((_layout(rule.axes, mesh), whole), (_layout(rule.axes, mesh),))
        if mesh.pp > 1:
            seen.pipeline_stage, seen.pipeline_segment = cells[path].pipeline_stage, cells[path].pipeline_segment
        cells[parent]._cells[name] = seen
        found.append(seen.squares)
    return tuple(found)


def in_micro_batches(network: nn.Cell, parallel: ParallelSection) -> nn.Cell:
    """MindSpore's wrapper that schedules the micro-batches of a network with one output, `network.network`."""
    network.cell_init_args = f"lazy_inline_{type(network).__name__}"  # the micro-batches share one graph
    wrap = Pipeline if mesh_of(parallel).pp > 1 else GradAccumulation
    return wrap(network, parallel.micro_batches)


def gradient_shares(
    parameters: Iterable[Parameter], plan: Plan, parallel: ParallelSection, rank: int
) -> tuple[float, ...]:
    """What each slice of a gradient that a rank has counts in a sum over all ranks: several may hold it."""
    mesh, sharded = mesh_of(parallel), parallel.shard_optimizer != "none"

    def share(parameter: Parameter) -> float:
        if plan.stage_of(parameter.name) != stage_of(rank, mesh):
            return 0.0
        axes = held_axes(plan, parameter.name, parameter.shape, mesh, sharded)
        return math.prod(mesh.degree(axis) for axis in axes) / mesh.stage_size

    return tuple(map(share, parameters))


def partitioned(network: nn.Cell, parallel: ParallelSection) -> AutoParallel:
    """A network as this process's rank compiles it; every rank is given the whole global batch.

    Compiled, parameters without numbers have the shapes of this rank's slices; those with numbers are cut.
    """
    whole = AutoParallel(network, parallel_mode="semi_auto")
    whole.no_init_parameters_in_compile()
    whole.dataset_strategy("full_batch")
    stages = mesh_of(parallel).pp
    if stages > 1:
        whole.pipeline(stages=stages, interleave=parallel.interleave > 1, scheduler="1f1b")
    if parallel.shard_optimizer != "none":
        whole.hsdp(threshold=0, optimizer_level=OPTIMIZER_LEVELS[parallel.shard_optimizer])
    return whole
