"""Graphs are written with MindSpore's own generated classes and read with ours."""

from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from mindmodel.dryrun.graph import MONAD, Input, Node, Opaque, Parameter, Primitive, TensorType
from mindmodel.dryrun.mindir import load_graph
from mindmodel.errors import LayoutError


@pytest.fixture(scope="module")
def proto():
    from mindspore.train import mind_ir_pb2

    return mind_ir_pb2


def typed(dtype, *shape: int) -> TensorType:
    return TensorType(dtype=np.dtype(dtype), shape=shape)


@pytest.fixture
def model(proto):
    """What a graph of one addition, y = x + w, looks like; values carry the graph's name."""
    model = proto.ModelProto()
    model.graph.name = "main"
    model.primitives.add(name="Add:2", op_type="Add").attribute.add(name="fast", type=proto.AttributeProto.BOOL, i=1)
    model.graph.parameter.add(name="main:layers.0.weight", data_type=proto.TensorProto.FLOAT, dims=[2, 3])
    given = model.graph.input.add(name="main:x")
    given.tensor.add(data_type=proto.TensorProto.BFLOAT16, dims=[2, 3])
    node = model.graph.node.add(name="main:CNode_1:1", op_type="REF::Add:2", domain="Default/network-Net/Add-op0")
    node.input.extend(["main:x", "main:layers.0.weight"])
    node.output.append("main:CNode_1:1")
    shape = node.attribute.add(name="shape", type=proto.AttributeProto.TENSORS)
    shape.tensors.add(data_type=proto.TensorProto.FLOAT, dims=[2, 3])
    model.graph.output.add(name="main:CNode_1:1")
    return model


def add_constant(proto, model, **value):
    """A constant whose value is an attribute with these fields; returns the attribute."""
    node = model.graph.node.add(op_type="Constant", name="constant")
    node.output.append("constant")
    return node.attribute.add(name="value", **value)


def read(model):
    return load_graph(model.SerializeToString())


def test_a_graph_becomes_records(model):
    graph = read(model)
    x = Input(name="x", key="main:x", type=typed(ml_dtypes.bfloat16, 2, 3))
    weight = Parameter(name="layers.0.weight", key="main:layers.0.weight", type=typed(np.float32, 2, 3))
    node = Node(
        name="CNode_1:1",
        scope="Default/network-Net/Add-op0",
        target="Add:2",
        inputs=("main:x", "main:layers.0.weight"),
        output="main:CNode_1:1",
        type=typed(np.float32, 2, 3),
    )
    assert (graph.main.inputs, graph.parameters, graph.main.nodes) == ((x,), (weight,), (node,))
    assert graph.main.outputs == ("main:CNode_1:1",)
    assert graph.primitives == {"Add:2": Primitive(name="Add", attributes={"fast": True})}


def test_a_graph_is_read_from_a_file_too(model, tmp_path):
    path = tmp_path / "graph.mindir"
    path.write_bytes(model.SerializeToString())
    assert load_graph(path) == read(model)


def test_mindspore_is_not_loaded(model):
    load = f"from mindmodel.dryrun.mindir import load_graph; load_graph({model.SerializeToString()})"
    code = f"import sys; {load}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "mindspore" not in result.stdout.split()


def test_functions_are_found_by_name(model):
    function = model.functions.add(name="inner")
    function.input.add(name="inner:a")
    function.output.add(name="inner:a")
    graph = read(model)
    assert graph.functions.keys() == {"main", "inner"}
    assert graph.functions["inner"].inputs == (Input(name="a", key="inner:a", type=None),)


@pytest.mark.parametrize(
    "name, raw, wanted",
    [
        ("FLOAT", np.array([0.5, -2.0], np.float32), np.array([0.5, -2.0], np.float32)),
        ("BFLOAT16", np.array([0x3F00, 0xC000], np.uint16), np.array([0.5, -2.0], ml_dtypes.bfloat16)),
        ("FLOAT16", np.array([0.5, -2.0], np.float16), np.array([0.5, -2.0], np.float16)),
        ("DOUBLE", np.array([0.5, -2.0]), np.array([0.5, -2.0])),
        ("INT32", np.array([7, -1], np.int32), np.array([7, -1], np.int32)),
        ("BOOL", np.array([True, False]), np.array([True, False])),
    ],
)
def test_a_constant_tensor_keeps_its_dtype(proto, model, name, raw, wanted):
    value = add_constant(proto, model, type=proto.AttributeProto.TENSORS)
    value.tensors.add(data_type=proto.TensorProto.DataType.Value(name), dims=[2], raw_data=raw.tobytes())
    found = read(model).constants["constant"]
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found.astype(np.float64), wanted.astype(np.float64))


@pytest.mark.parametrize(
    "kind, fields, wanted",
    [
        ("INT64", {"i": -3}, -3),
        ("INT64", {"ints": [5]}, 5),
        ("BOOL", {"i": 1}, True),
        ("FLOAT", {"f": 0.5}, 0.5),
        ("DOUBLE", {"d": 0.25}, 0.25),
        ("STRING", {"s": b"sum"}, "sum"),
        ("NONE", {}, None),
        ("UMONAD", {}, MONAD),
        ("IOMONAD", {}, MONAD),
        ("TYPE_NULL", {}, Opaque(kind="TYPE_NULL")),
    ],
)
def test_a_constant_becomes_a_value_of_python(proto, model, kind, fields, wanted):
    add_constant(proto, model, type=proto.AttributeProto.AttributeType.Value(kind), **fields)
    assert read(model).constants["constant"] == wanted


def test_a_constant_tuple_may_hold_tuples(proto, model):
    value = add_constant(proto, model, type=proto.AttributeProto.TUPLE)
    value.values.add(type=proto.AttributeProto.INT64, i=1)
    value.values.add(type=proto.AttributeProto.LIST).values.add(type=proto.AttributeProto.INT64, i=2)
    assert read(model).constants["constant"] == (1, (2,))


def test_a_tensor_without_data_is_a_type(proto, model):
    dtype = model.primitives[0].attribute.add(name="dtype", type=proto.AttributeProto.TENSORS)
    dtype.tensors.add(data_type=proto.TensorProto.BFLOAT16)
    assert read(model).primitives["Add:2"].attributes["dtype"] == typed(ml_dtypes.bfloat16)


def test_a_result_may_be_a_tuple_of_known_length(proto, model):
    shape = model.graph.node[0].attribute[0]
    shape.type = proto.AttributeProto.TUPLE
    shape.values.add(type=proto.AttributeProto.TENSORS).tensors.add(data_type=proto.TensorProto.INT32, dims=[4])
    shape.values.add(type=proto.AttributeProto.UMONAD)
    assert read(model).main.nodes[0].type == (typed(np.int32, 4), None)
    shape.seq_info.is_dyn_len = True
    assert read(model).main.nodes[0].type is None


def damaged_bytes(proto, model):
    return model.SerializeToString()[:-3]


def no_graph(proto, model):
    return b""


def tensor_cut_short(proto, model):
    value = add_constant(proto, model, type=proto.AttributeProto.TENSORS)
    value.tensors.add(data_type=proto.TensorProto.FLOAT, dims=[3], raw_data=b"\0" * 8)


def tensor_of_text(proto, model):
    model.graph.parameter[0].data_type = proto.TensorProto.STRING


def shape_not_known(proto, model):
    model.graph.parameter[0].dims[0] = -1


def operand_from_nowhere(proto, model):
    model.graph.node[0].input[0] = "main:other"


def operator_from_nowhere(proto, model):
    model.graph.node[0].op_type = "REF::Sub:3"


def result_from_nowhere(proto, model):
    model.graph.output[0].name = "main:other"


def two_results(proto, model):
    model.graph.node[0].output.append("main:CNode_1:2")


def nested_without_end(proto, model):
    value = add_constant(proto, model, type=proto.AttributeProto.TUPLE)
    for _ in range(2000):
        value = value.values.add(type=proto.AttributeProto.TUPLE)


@pytest.mark.parametrize(
    "damage, message",
    [
        (damaged_bytes, "is not a MindIR graph that can be read: .*Compile it again"),
        (no_graph, "it holds no graph"),
        (tensor_cut_short, "cannot reshape array of size 2"),
        (tensor_of_text, r"STRING\[2, 3\] 'main:layers.0.weight' is not a tensor of a fixed size and a known dtype"),
        (shape_not_known, r"FLOAT\[-1, 3\] 'main:layers.0.weight' is not a tensor of a fixed size"),
        (operand_from_nowhere, "node 'CNode_1:1' needs 'main:other', which nothing before it makes"),
        (operator_from_nowhere, "node 'CNode_1:1' needs 'Sub:3', which nothing before it makes"),
        (result_from_nowhere, "function 'main' returns 'main:other', which nothing in it makes"),
        (two_results, "node 'main:CNode_1:1' has 2 where one is needed"),
        (nested_without_end, "is not a MindIR graph that can be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(proto, model, tmp_path, damage, message):
    data = damage(proto, model)
    path = tmp_path / "graph.mindir"
    path.write_bytes(data if data is not None else model.SerializeToString())
    with pytest.raises(LayoutError, match=f"graph.mindir: .*{message}"):
        load_graph(path)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(LayoutError, match="absent.mindir: is not a MindIR graph that can be read: .*No such file"):
        load_graph(tmp_path / "absent.mindir")


def test_bytes_that_cannot_be_read_are_refused():
    with pytest.raises(LayoutError, match="the graph: is not a MindIR graph"):
        load_graph(b"\xff\xff")
