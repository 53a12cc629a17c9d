"""Functions and whole training steps as Cells, and what MindSpore's compiler made of one: operators with dtypes and
shapes of their operands.

To read a graph nothing is executed and no kernels are chosen, so a graph whose operators the CPU lacks can be read too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mindmodel.recipe.schema import ModelSection, OptimSection, TrainSection

TENSOR_DTYPES = {"FLOAT": "float32", "BFLOAT16": "bfloat16", "FLOAT16": "float16"}


@dataclass(frozen=True, kw_only=True)
class Value:
    """A tensor in a graph: `dtype` as NumPy spells it."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Operator:
    """A node of a compiled graph.

    Attributes:
        name: as `MatMul`.
        scope: the Cells it stands in, as `decoder/layers/0/attention/qkv`; gradients begin with `Gradients/`.
        inputs, outputs: the tensors among its operands and results.
    """

    name: str
    scope: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    @property
    def is_gradient(self) -> bool:
        """Whether automatic differentiation made it. What stands in a hand-written `bprop` does not count."""
        return self.scope.startswith("Gradients/")


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A compiled graph. `parameters` by name."""

    operators: tuple[Operator, ...]
    parameters: dict[str, Value]

    def named(self, name: str) -> list[Operator]:
        """The operators of one kind."""
        return [operator for operator in self.operators if operator.name == name]


def compiled_graph(cell, *inputs) -> Graph:
    """Compile a Cell for inputs of these shapes, up to the optimised graph."""
    from mindspore.graph.api import _cell_graph_executor
    from mindspore.train import mind_ir_pb2

    graph_id, _ = _cell_graph_executor.compile(cell, *inputs, phase="export.mindir", do_convert=False)
    model = mind_ir_pb2.ModelProto()
    model.ParseFromString(_cell_graph_executor._get_func_graph_proto(cell, graph_id, "mind_ir"))
    bodies = [model.graph, *model.functions]
    values = {}
    for body in bodies:
        for parameter in body.parameter:
            values[parameter.name] = (_value(parameter),)
        for given in body.input:
            values[given.name] = tuple(map(_value, given.tensor))
        for node in body.node:
            values[node.output[0]] = _results(node)
    operators = tuple(_operator(node, values) for body in bodies for node in body.node)
    parameters = {p.name.split(":")[-1]: _value(p) for body in bodies for p in body.parameter}
    return Graph(operators=operators, parameters=parameters)


def as_cell(function):
    """A Cell that calls a function, such as one of `value_and_grad`, so that graph mode compiles it."""
    from mindspore import nn

    class AsCell(nn.Cell):
        def __init__(self):
            super().__init__(auto_prefix=False)
            self.function = function

        def construct(self, *inputs):
            return self.function(*inputs)

    return AsCell()


def training_step(model: ModelSection, seq_len: int, compute_dtype: str = "float32"):
    """The step of a model as a Cell, with the kernels that are chosen now."""
    from mindmodel.models.decoder import Decoder, DecoderLoss
    from mindmodel.train.optim import AdamW
    from mindmodel.train.step import TrainStep

    train = TrainSection(steps=1, tokens_per_step=2 * seq_len, compute_dtype=compute_dtype)
    decoder = Decoder(model, seq_len, compute_dtype)
    optimizer = AdamW(decoder.trainable_params(), OptimSection())
    return TrainStep(DecoderLoss(decoder, model.vocab_size), optimizer, train, 1).set_train()


def training_graph(model: ModelSection, seq_len: int, compute_dtype: str = "float32") -> Graph:
    """Of a model's step over two sequences."""
    import mindspore as ms
    from mindspore import Tensor

    ids = Tensor(np.zeros((2, seq_len), np.int32))
    return compiled_graph(training_step(model, seq_len, compute_dtype), ids, ids, Tensor(1e-3, ms.float32))


def _value(tensor) -> Value:
    """Of a TensorProto."""
    name = type(tensor).DataType.Name(tensor.data_type)
    return Value(dtype=TENSOR_DTYPES.get(name, name.lower()), shape=tuple(tensor.dims))


def _tensors(attribute) -> tuple[Value, ...]:
    """Of an attribute, in order, those within tuples too."""
    inner = (value for part in attribute.values for value in _tensors(part))
    return (*map(_value, attribute.tensors), *inner)


def _results(node) -> tuple[Value, ...]:
    """A node's tensors: what was inferred, or the value of a constant."""
    return next((_tensors(attribute) for attribute in node.attribute if attribute.name in ("shape", "value")), ())


def _operator(node, values: dict[str, tuple[Value, ...]]) -> Operator:
    name = node.op_type.split("::")[-1].split(":")[0]
    inputs = tuple(value for operand in node.input for value in values.get(operand, ()))
    return Operator(name=name, scope=_scope(node.domain), inputs=inputs, outputs=_results(node))


def _scope(domain: str) -> str:
    """`Default/decoder-Decoder/layers-CellList/0-Block/MatMul-op0` as `decoder/layers/0`."""
    cells = [part.split("-")[0] for part in domain.split("/")[:-1]]
    return "/".join(part for part in cells if part != "Default")
