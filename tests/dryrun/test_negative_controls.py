"""A fault in a partitioned graph, in a rank's slices or in its inputs is noticed. One fault at a time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from graph_edits import edited, is_gradient_sum, named, nodes_of, with_attributes, without
from mindmodel.dryrun import prove
from mindmodel.dryrun.interpret import Interpreter
from mindmodel.errors import LayoutError

CONTROLS = {}


def control(*layouts):
    """A function that puts a fault into lists of graphs and of slices, and the layouts it is tried on."""

    def register(function):
        for layout in layouts:
            CONTROLS[f"{layout}: {function.__name__}"] = layout, function
        return function

    return register


def with_inputs(graph, inputs_by_name):
    """Nodes with other operands."""

    def edit(node, primitive):
        if node.name in inputs_by_name:
            return dataclasses.replace(node, inputs=inputs_by_name[node.name]), primitive
        return None

    return edited(graph, edit)


def sum_to_max(graph, name):
    def edit(node, primitive):
        if primitive.name == name and primitive.attributes["op"] == "sum":
            return node, with_attributes(primitive, op="max")
        return None

    return edited(graph, edit)


@control("dp2 tp2", "dp2 accumulated")
def sums_of_gradients_removed(graphs, slices):
    graphs[:] = [without(graph, "AllReduce", is_gradient_sum) for graph in graphs]


@control("dp2 tp2")
def one_sum_of_a_gradient_removed(graphs, slices):
    name = [node.name for node in nodes_of(graphs[0], "AllReduce") if is_gradient_sum(node)][0]
    graphs[:] = [without(graph, "AllReduce", lambda node: node.name == name) for graph in graphs]


@control("dp2 tp2")
def other_sums_removed(graphs, slices):
    graphs[:] = [without(graph, "AllReduce", lambda node: not is_gradient_sum(node)) for graph in graphs]


@control("dp2 tp2")
def sums_of_gradients_over_another_axis(graphs, slices):
    """Over tp, whose ranks hold other slices of the same shape."""

    def edit(node, primitive):
        group = primitive.attributes.get("group_rank_ids")
        if primitive.name == "AllReduce" and is_gradient_sum(node) and group == over_dp:
            return node, with_attributes(primitive, group="tp", group_rank_ids=over_tp)
        return None

    for rank, graph in enumerate(graphs):
        over_dp, over_tp = ((rank % 2, rank % 2 + 2), (rank // 2 * 2, rank // 2 * 2 + 1))
        graphs[rank] = edited(graph, edit)


@control("dp2 tp2", "tp4", "dp2 cp2")
def sums_become_largest_values(graphs, slices):
    graphs[:] = [sum_to_max(graph, "AllReduce") for graph in graphs]


@control("dp2 tp2 sequence_parallel", "dp4 states", "cp2", "tp4 copied heads")
def scattered_sums_become_largest_values(graphs, slices):
    graphs[:] = [sum_to_max(graph, "ReduceScatter") for graph in graphs]


@control("dp2 tp2")
def one_sum_of_the_last_rank_in_another_group(graphs, slices):
    name = nodes_of(graphs[-1], "AllReduce")[0].name

    def edit(node, primitive):
        return (node, with_attributes(primitive, group="another")) if node.name == name else None

    graphs[-1] = edited(graphs[-1], edit)


@control("dp2 tp2", "dp4 states", "dp4 parameters")
def slices_of_two_ranks_swapped(graphs, slices):
    slices[0], slices[1] = slices[1], slices[0]


@control("dp2 tp2", "dp4", "pp2", "cp2")
def a_weight_of_the_last_rank_off_by_a_millionth(graphs, slices):
    slices[-1] = {**slices[-1], "norm.weight": slices[-1]["norm.weight"] * np.float32(1 + 1e-6)}


@control("dp2 tp2 tied qk_norm")
def a_head_norm_of_the_last_rank_off_by_a_millionth(graphs, slices):
    name = "layers.0.attention.k_norm.weight"
    slices[-1] = {**slices[-1], name: slices[-1][name] * np.float32(1 + 1e-6)}


@control("dp2 tp2")
def kv_heads_of_a_rank_in_another_order(graphs, slices):
    name = "layers.0.attention.qkv.weight"
    slices[0] = {**slices[0], name: np.roll(slices[0][name], len(slices[0][name]) // 2, axis=0)}


@control("pp2", "pp4", "pp2 interleaved")
def a_micro_batch_fed_twice(graphs, slices):
    first, second, *_ = nodes_of(graphs[0], "StridedSlice")
    graphs[0] = with_inputs(graphs[0], {second.name: (second.inputs[0], *first.inputs[1:])})


@control("pp2", "dp2 accumulated")
def an_accumulation_that_keeps_only_the_last_micro_batch(graphs, slices):
    name = nodes_of(graphs[0], "AssignAdd")[0].name

    def edit(node, primitive):
        return (node, named(primitive, "Assign")) if node.name == name else None

    graphs[0] = edited(graphs[0], edit)


@control("pp2", "dp2 accumulated")
def gradients_that_are_not_cleared(graphs, slices):
    name = nodes_of(graphs[0], "AssignSub")[0].name
    graphs[0] = without(graphs[0], "AssignSub", lambda node: node.name == name)


@control("pp2 tied")
def the_last_stage_s_gradient_of_a_tied_weight_left_out(graphs, slices):
    received = {node.output for node in nodes_of(graphs[0], "Receive")}
    graphs[0] = without(graphs[0], "AssignAdd", lambda node: node.inputs[1] in received)


@control("pp2 interleaved")
def chunks_of_a_stage_exchanged(graphs, slices):
    exchanged = {"layers.0.": "layers.2.", "layers.2.": "layers.0."}
    slices[0] = {exchange_of(name, exchanged): array for name, array in slices[0].items()}


@control("pp2 uneven")
def layers_of_a_longer_stage_exchanged(graphs, slices):
    exchanged = {"layers.1.": "layers.2.", "layers.2.": "layers.1."}
    slices[1] = {exchange_of(name, exchanged): array for name, array in slices[1].items()}


def exchange_of(name, exchanged):
    for old, new in exchanged.items():
        if old in name:
            return name.replace(old, new)
    return name


def constant_behind(graph, key):
    """The constant that an operand is, or is once other operators are done."""
    nodes = {node.output: node for node in nodes_of(graph, "Depend")}
    while key in nodes:
        key = nodes[key].inputs[0]
    return key


@control("cp2", "dp2 cp2")
def positions_of_another_rank(graphs, slices):
    """The rotary tables of the last rank are those of the first."""
    first, last = (
        [constant_behind(graph, node.inputs[i]) for node in nodes_of(graph, "RotaryPositionEmbedding") for i in (1, 2)]
        for graph in (graphs[0], graphs[-1])
    )
    constants = dict(graphs[-1].constants)
    for mine, theirs in zip(first, last):
        constants[theirs] = graphs[0].constants[mine]
    graphs[-1] = dataclasses.replace(graphs[-1], constants=constants)


@control("cp2", "dp2 cp2")
def a_mask_that_shows_one_token_more(graphs, slices):
    """The last rank's next_tokens, operand 14 of the operator."""
    node, graph = nodes_of(graphs[0], "FlashAttentionScore")[0], graphs[0]
    key, value = "one more", graph.constants[node.inputs[14]] + 1
    graph = dataclasses.replace(graph, constants={**graph.constants, key: value})
    graphs[0] = with_inputs(graph, {node.name: (*node.inputs[:14], key, *node.inputs[15:])})


def holds(partition, graphs, slices):
    """Whether the layout still is right; ranks that do not fit together are not."""
    try:
        return partition.proof(graphs, slices).holds
    except LayoutError:
        return False


@pytest.mark.parametrize("layout, fault", CONTROLS.values(), ids=CONTROLS)
def test_a_fault_is_noticed(partition, fault):
    graphs, slices = list(partition.graphs), list(partition.slices)
    fault(graphs, slices)
    changed = [*map(id, graphs), *map(id, slices)] != [*map(id, partition.graphs), *map(id, partition.slices)]
    assert changed and not holds(partition, graphs, slices)


@pytest.mark.parametrize("layout", dict.fromkeys(layout for layout, _ in CONTROLS.values()))
def test_nothing_is_noticed_where_nothing_changed(partition):
    graphs = [edited(graph, lambda node, primitive: (node, primitive)) for graph in partition.graphs]
    assert holds(partition, graphs, [dict(rank) for rank in partition.slices])


class LastRankReadsBackwards(Interpreter):
    """Its sequences come in another order."""

    def run(self, inputs):
        return super().run([*inputs[:-1], tuple(array[::-1] for array in inputs[-1])])


@pytest.mark.parametrize("layout", ["dp2 tp2", "pp2"])
def test_another_batch_on_one_rank_is_noticed(partition, monkeypatch):
    monkeypatch.setattr(prove, "Interpreter", LastRankReadsBackwards)
    assert not holds(partition, list(partition.graphs), partition.slices)


@pytest.mark.parametrize("layout", ["dp2 tp2"])
def test_what_is_not_a_number_is_noticed_on_any_rank(partition):
    for rank in range(len(partition.ranks)):
        slices = list(partition.slices)
        slices[rank] = {**slices[rank], "first_moment.norm.weight": slices[rank]["first_moment.norm.weight"] * np.nan}
        assert not holds(partition, None, slices)
