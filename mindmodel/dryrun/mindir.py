"""Read MindIR, the file format of MindSpore's compiled graphs. MindSpore is not imported."""

from __future__ import annotations

import ast
import functools
import math
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, Iterator, Union

import ml_dtypes
import numpy as np
from google.protobuf.message import DecodeError

from mindmodel.dryrun.graph import (
    MONAD,
    Function,
    Graph,
    Input,
    Node,
    Opaque,
    Parameter,
    Primitive,
    TensorType,
    ValueType,
)
from mindmodel.errors import LayoutError

DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "FLOAT16": np.dtype(np.float16),
    "BFLOAT16": np.dtype(ml_dtypes.bfloat16),
    "FLOAT": np.dtype(np.float32),
    "FLOAT64": np.dtype(np.float64),
    "DOUBLE": np.dtype(np.float64),
}


def load_graph(data: Union[bytes, Path]) -> Graph:
    """Read a graph.

    Args:
        data: the serialized ModelProto, or the path of its file.

    Raises:
        LayoutError: if it cannot be read, or a node reads what nothing before it makes.
    Source: mind_ir.proto of MindSpore 2.9.
    """
    where = "the graph" if isinstance(data, bytes) else str(data)
    try:
        model = model_class().FromString(data if isinstance(data, bytes) else data.read_bytes())
        graph = _graph(model)
        _check_references(graph)
    except (OSError, DecodeError, ValueError, RecursionError) as error:
        raise LayoutError(f"{where}: is not a MindIR graph that can be read: {error}. Compile it again.") from error
    return graph


@functools.cache
def model_class() -> Any:
    """MindIR's ModelProto, from the schema in MindSpore's generated module.

    That module itself is not loaded: it imports MindSpore, and stops under any protobuf made after 2022.
    """
    from google.protobuf import descriptor_pool, message_factory

    path = distribution("mindspore").locate_file("mindspore/train/mind_ir_pb2.py")
    module = ast.parse(Path(str(path)).read_bytes())
    schemas = [node for node in ast.walk(module) if isinstance(node, ast.keyword) and node.arg == "serialized_pb"]
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(ast.literal_eval(schemas[0].value))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("mind_ir.ModelProto"))


def _graph(model: Any) -> Graph:
    if not model.graph.output:
        raise ValueError("it holds no graph")
    bodies = [model.graph, *model.functions]
    return Graph(
        main=_function(model.graph),
        parameters=tuple(_parameter(tensor) for body in bodies for tensor in body.parameter),
        functions={body.name: _function(body) for body in bodies},
        primitives={primitive.name: _primitive(primitive) for primitive in model.primitives},
        constants={key: value for body in bodies for key, value in _constants(body)},
    )


def _function(body: Any) -> Function:
    return Function(
        name=body.name,
        inputs=tuple(_input(value) for value in body.input),
        nodes=tuple(_node(node) for node in body.node if node.op_type != "Constant"),
        outputs=tuple(value.name for value in body.output),
    )


def _parameter(tensor: Any) -> Parameter:
    return Parameter(name=_own_name(tensor.name), key=tensor.name, type=_tensor_type(tensor))


def _input(value: Any) -> Input:
    declared = _tensor_type(value.tensor[0]) if len(value.tensor) == 1 else None
    return Input(name=_own_name(value.name), key=value.name, type=declared)


def _primitive(primitive: Any) -> Primitive:
    attributes = {attribute.name: _value(attribute) for attribute in primitive.attribute}
    return Primitive(name=primitive.op_type, attributes=attributes)


def _constants(body: Any) -> Iterator[tuple[str, Any]]:
    for node in body.node:
        if node.op_type == "Constant":
            yield _only(node.output, node), _value(_only(node.attribute, node))


def _node(node: Any) -> Node:
    declared = [attribute for attribute in node.attribute if attribute.name == "shape"]
    return Node(
        name=_own_name(node.name),
        scope=node.domain,
        target=node.op_type.removeprefix("REF::"),
        inputs=tuple(node.input),
        output=_only(node.output, node),
        type=_value_type(declared[0]) if declared else None,
    )


def _only(items: Any, node: Any) -> Any:
    if len(items) != 1:
        raise ValueError(f"node {node.name!r} has {len(items)} where one is needed")
    return items[0]


def _own_name(name: str) -> str:
    """MindIR puts the graph's name before that of each of its values."""
    return name.partition(":")[2] or name


def _tensor_type(tensor: Any) -> TensorType:
    name = type(tensor).DataType.Name(tensor.data_type)
    if name not in DTYPES or any(size < 0 for size in tensor.dims):
        raise ValueError(f"{name}{list(tensor.dims)} {tensor.name!r} is not a tensor of a fixed size and a known dtype")
    return TensorType(dtype=DTYPES[name], shape=tuple(tensor.dims))


def _kind(attribute: Any) -> str:
    return type(attribute).AttributeType.Name(attribute.type)


def _value_type(attribute: Any) -> ValueType:
    kind = _kind(attribute)
    if kind == "TENSORS" and len(attribute.tensors) == 1:
        return _tensor_type(attribute.tensors[0])
    if kind in ("TUPLE", "LIST") and not attribute.seq_info.is_dyn_len:
        return tuple(map(_value_type, attribute.values))
    return None


def _value(attribute: Any) -> Any:
    kind = _kind(attribute)
    if kind == "TENSORS":
        return _array_or_type(_only(attribute.tensors, attribute))
    if kind in ("TUPLE", "LIST"):
        return tuple(map(_value, attribute.values))
    if kind in ("UMONAD", "IOMONAD"):
        return MONAD
    if kind.startswith(("INT", "UINT")):
        return attribute.ints[0] if attribute.ints else attribute.i
    simple = {"BOOL": bool(attribute.i), "FLOAT": attribute.f, "DOUBLE": attribute.d, "NONE": None}
    if kind == "STRING":
        return attribute.s.decode()
    return simple.get(kind, Opaque(kind=kind))


def _array_or_type(tensor: Any) -> Union[np.ndarray, TensorType]:
    """A read-only array; a type, which MindIR writes as a tensor without data."""
    declared = _tensor_type(tensor)
    if not tensor.raw_data and math.prod(declared.shape) > 0:
        return declared
    return np.frombuffer(tensor.raw_data, declared.dtype).reshape(declared.shape)


def _check_references(graph: Graph) -> None:
    """Every node finds its operands and its target."""
    shared = {parameter.key for parameter in graph.parameters} | graph.constants.keys() | graph.functions.keys()
    for function in graph.functions.values():
        known = shared | {value.key for value in function.inputs}
        for node in function.nodes:
            needed = [*node.inputs] if node.target in graph.primitives else [*node.inputs, node.target]
            for key in needed:
                if key not in known:
                    raise ValueError(f"node {node.name!r} needs {key!r}, which nothing before it makes")
            known.add(node.output)
        for key in function.outputs:
            if key not in known:
                raise ValueError(f"function {function.name!r} returns {key!r}, which nothing in it makes")
