"""Graphs made by hand, and what is told of them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mindmodel.debug.graph.difference import changes
from mindmodel.debug.graph.sources import Source
from mindmodel.debug.graph.summary import read_summary, summarize
from mindmodel.dryrun.graph import Function, Graph, Input, Node, Parameter, Primitive, TensorType
from mindmodel.errors import GraphError

MASK = np.triu(np.ones((32, 32), np.float32), 1)
LAYER = "Default/network-Net/decoder-Decoder/layers-CellList/{}-Block/attention-Attention/{}-op0"


def typed(dtype, *shape):
    return TensorType(dtype=np.dtype(dtype), shape=shape)


def node(kind, scope, inputs, output, result):
    return Node(name=output, scope=scope, target=kind, inputs=tuple(inputs), output=output, type=result)


def graph_of(nodes, constants=(), parameters=()):
    given = Input(name="x", key="x", type=typed("float32", 32, 32))
    main = Function(name="main", inputs=(given,), nodes=tuple(nodes), outputs=(nodes[-1].output,))
    return Graph(
        main=main,
        parameters=tuple(parameters),
        functions={"main": main},
        primitives={kind: Primitive(name=kind, attributes={}) for kind in {node.target for node in nodes}},
        constants=dict(constants),
    )


def summary_of(graph, sources=(), missing=()):
    given = {"recipe": "demo", "device": "cpu", "compile_s": {"total": 1.5}}
    return summarize(graph, dict(sources), missing=missing, **given)


def masked(*masks):
    """A layer for each mask, which is added."""
    values, nodes = ["x", *(f"y{i}" for i in range(len(masks)))], []
    for i in range(len(masks)):
        made = values[i + 1]
        nodes.append(node("Add", LAYER.format(i, "Add"), [values[i], f"mask{i}"], made, typed("float32", 32, 32)))
    return graph_of(nodes, [(f"mask{i}", mask) for i, mask in enumerate(masks)])


def cast(scope="Default/embedding-Embedding/Cast-op0"):
    return node("Cast", scope, ["y0", "dtype"], "low", typed("float16", 32, 32))


def test_a_mask_held_once_for_each_layer_is_named_with_cell_line_and_bytes():
    line = Source(file="net.py", line=12)
    summary = summary_of(masked(MASK, MASK.copy(), MASK.copy()), {LAYER.format(0, "Add"): line})
    (found,) = summary.duplicates
    assert (found.copies, found.num_bytes, found.type) == (3, 3 * 4096, "float32[32, 32]")
    assert (found.place, found.where) == ("layers.0.attention", "net.py:12")


def test_constants_that_differ_are_no_duplicates():
    summary = summary_of(masked(MASK, 2 * MASK))
    assert summary.duplicates == () and [row.copies for row in summary.constants] == [1, 1]


def test_small_constants_may_be_held_often():
    summary = summary_of(masked(np.float32(1), np.float32(1)))
    assert summary.duplicates == ()


def test_a_parameter_that_nothing_updates_is_named_once_for_all_layers():
    parameters = [
        Parameter(name=f"layers.{i}.{name}", key=f"{name}{i}", type=typed("float32", 32, 32))
        for i in range(2)
        for name in ("mask", "weight")
    ]
    nodes = [node("Adam", f"Default/Adam-op{i}", [f"weight{i}", "x"], f"y{i}", None) for i in range(2)]
    (found,) = summary_of(graph_of(nodes, parameters=parameters)).frozen
    assert (found.name, found.count, found.num_bytes) == ("layers.*.mask", 2, 8192)


def test_nodes_are_counted_by_operator_and_layer_without_those_that_only_bundle():
    tuple_of = node("MakeTuple", "Default/MakeTuple-op0", ["y0", "y1"], "both", None)
    backward = node("Mul", f"Gradients/{LAYER.format(1, 'Mul')}", ["y0", "y1"], "dy", typed("float32", 32, 32))
    graph = masked(MASK, MASK)
    summary = summary_of(graph_of([*graph.main.nodes, backward, tuple_of]))
    assert summary.kinds == {"Add": 2, "Mul": 1} and summary.num_nodes == 3
    assert summary.layers == {"layers.0": (1, 0), "layers.1": (1, 1)}


def test_a_cast_belongs_to_what_is_cast_and_not_to_where_it_stands():
    summary = summary_of(graph_of([*masked(MASK).main.nodes, cast()]))
    (found,) = summary.casts
    assert (found.before, found.after, found.origin) == ("float32", "float16", "layers.*.attention")


def test_the_largest_results_come_first():
    large = node("Tile", "Default/Tile-op0", ["y0"], "big", typed("float32", 32, 64))
    summary = summary_of(graph_of([*masked(MASK).main.nodes, large]))
    assert [(row.kind, row.num_bytes) for row in summary.tensors] == [("Tile", 8192), ("Add", 4096)]


def test_an_added_cast_is_a_change():
    old = summary_of(masked(MASK))
    new = summary_of(graph_of([*masked(MASK).main.nodes, cast()], [("mask0", MASK)]))
    found = changes(old, new)
    assert found[0] == "nodes 1 -> 2" and "operator Cast: 0 -> 1" in found
    assert "cast float32 to float16 of layers.*.attention: 0 -> 1" in found


def test_a_graph_does_not_differ_from_itself_saved_and_read(tmp_path):
    summary = summary_of(graph_of([*masked(MASK).main.nodes, cast()], [("mask0", MASK)]))
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(summary.to_json()))
    assert read_summary(path) == summary and changes(read_summary(path), summary) == []


@pytest.mark.parametrize(
    "text, said",
    [
        ("{}", "is no summary of a graph. `mindmodel debug graph RECIPE --out FOLDER` makes one."),
        ('{"format": 1}', "the summary of a graph in it is damaged"),
        ('{"format": 1, "parameters": [{}], "constants": 1}', "the summary of a graph in it is damaged"),
    ],
)
def test_another_file_is_refused(tmp_path, text, said):
    path = tmp_path / "graph.json"
    path.write_text(text)
    with pytest.raises(GraphError, match=f"{path}: {said}"):
        read_summary(path)
