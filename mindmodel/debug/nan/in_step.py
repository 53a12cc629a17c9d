"""The first tensor of a training step that is not finite though all that it was computed from is.

The step's gradients are computed once more with every result as an output, a micro-batch after the other. What the
loss is computed from comes first, then the rest in the order of the graph: so the operands of the first result that is
not finite are finite.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Iterable, Mapping, Optional, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from mindmodel.data.loader import Batch
from mindmodel.debug.graph.compile import export_graph
from mindmodel.debug.graph.nodes import CUSTOM, SAME_VALUE
from mindmodel.debug.nan.values import Range, Values, range_of
from mindmodel.dryrun.graph import Node
from mindmodel.dryrun.scopes import GRADIENTS, LAYER, place_of
from mindmodel.parallel.runtime import Runtime, operators_unfused
from mindmodel.recipe.schema import Recipe
from mindmodel.train.build import Built

VIEWS = ("Cast", "Reshape", "Transpose", "TupleGetItem", "Muls")
"""Operators that the compiler merges over Cells, and names after any of them."""
ADDED_UP = "sum of squares"
LARGEST_SQUARE = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class Operand:
    """What an operator was given: `name` says whose result it is, or which weight."""

    name: str
    range: Range


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The first tensor that is not finite.

    Attributes:
        tensor: in words.
        place: Cell or weight, such as layers.3.mlp.swiglu.
        operator: that computed it; empty for what was read.
        phase: forward, backward, update, or read.
        where: the line of Python that called the operator, where MindSpore knows it.
        range: its numbers.
        inputs: of the operator.
        sequence: of the batch, from 0, whose number it is; None where the tensor is a sum over all sequences.
        token: in that sequence, where the tensor has a row for each token.
    """

    tensor: str
    place: str
    operator: str
    phase: str
    range: Range
    where: str = ""
    inputs: tuple[Operand, ...] = ()
    sequence: Optional[int] = None
    token: Optional[int] = None


class Gradients(nn.Cell):
    """Inputs: ids and labels of a micro-batch. Outputs: sum to differentiate, cross entropy, gradients by weight."""

    def __init__(self, built: Built):
        super().__init__(auto_prefix=False)
        self.network = built.step.network
        self.grad = ms.value_and_grad(self.network, None, weights=built.optimizer.parameters, has_aux=True)

    def construct(self, ids, labels):
        outputs, grads = self.grad(ids, labels)
        return outputs[0], outputs[1], grads


def first_bad_parameter(parameters: Iterable[Parameter], phase: str) -> Optional[Finding]:
    """The first of the weights, or of the optimizer's numbers, that holds what is not finite."""
    for parameter in parameters:
        found = range_of(parameter.asnumpy())
        if found.num_bad:
            place, operator = parameter.name.removesuffix(".weight"), "AdamW" if phase == "update" else ""
            return Finding(tensor=parameter.name, place=place, operator=operator, phase=phase, range=found)
    return None


class Search:
    """Looks into steps of one shape.

    Args:
        built: the training step of the recipe; it is looked into with the weights that it has then.
        stages: as export_graph's.

    Raises:
        GraphError: if the step's gradients do not compile.
    """

    def __init__(self, built: Built, recipe: Recipe, runtime: Runtime, stages: Path) -> None:
        self.runtime, self.num_layers = runtime, recipe.model.num_layers
        self.shape = built.rows // recipe.parallel.micro_batches, recipe.data.seq_len
        ids = Tensor(np.zeros(self.shape, np.int32))
        cell = Gradients(built).set_train()
        self.weights = list(cell.get_parameters())
        with operators_unfused(runtime):
            mindir, self.sources = export_graph(cell, (ids, ids), runtime.cache, stages)
        self.values = Values(mindir)
        self.nodes = self.values.nodes
        leaves = self.nodes.leaves(self.nodes.graph.main.outputs[0])
        self.gradients = dict(zip(leaves[2:], (weight.name for weight in built.optimizer.parameters)))
        self.forward = self._before(leaves[:2])
        self.ranges: dict[str, Range] = {}

    def first(self, batch: Batch) -> Optional[Finding]:
        """Of a global batch; None if all that is computed before the update is finite."""
        weights = {weight.name: Tensor(weight.asnumpy()) for weight in self.weights}
        self.ranges = {key: range_of(weights[name].asnumpy()) for key, name in self.nodes.parameters.items()}
        squares = dict.fromkeys(self.gradients, 0.0)
        size = self.shape[0]
        for begin in range(0, len(batch.ids), size):
            inputs = Tensor(batch.ids[begin:begin + size]), Tensor(batch.labels[begin:begin + size])
            if found := self._first(inputs, weights):
                first = found.sequence
                return found if first is None else replace(found, sequence=first + begin)
            for key in squares:
                squares[key] += self.ranges[key].norm ** 2
        return self._sum(squares) if sum(squares.values()) > LARGEST_SQUARE else None

    def _first(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Optional[Finding]:
        """Of a micro-batch."""
        nodes = sorted(self.values.tensors(), key=lambda node: node.output not in self.forward)
        with operators_unfused(self.runtime):
            for node, array in self.values.compute(nodes, inputs, weights, self.runtime.cache):
                found = self.ranges[node.output] = range_of(array)
                if found.num_bad:
                    return self._finding(node, found)
        return None

    def _sum(self, squares: Mapping[str, float]) -> Finding:
        """Of gradients each of which is finite."""
        largest = sorted(squares, key=lambda key: -squares[key])[:4]
        return Finding(
            tensor="the gradient norm",
            place="step",
            operator=ADDED_UP,
            phase="backward",
            range=range_of(np.array([np.inf], np.float32)),
            inputs=tuple(
                Operand(name=f"gradient of {self.gradients[key]}", range=self.ranges[key]) for key in largest
            ),
        )

    def _before(self, keys: Sequence[str]) -> set[str]:
        """What these are computed from, and they themselves."""
        found: set[str] = set()
        waiting = list(keys)
        while waiting:
            key = self.nodes.behind(waiting.pop())
            if key not in found:
                found.add(key)
                waiting += self.nodes.makers[key].inputs if key in self.nodes.makers else []
        return found

    def _finding(self, node: Node, found: Range) -> Finding:
        maker = self._maker(node)
        sequence, token = self._sample(node, found)
        return Finding(
            tensor=self._name(node),
            place=self._place(maker),
            operator=self._kernel(maker),
            phase="forward" if node.output in self.forward else "backward",
            where=str(self.sources.get(maker.scope, "")),
            range=found,
            inputs=tuple(self._operands(maker)),
            sequence=sequence,
            token=token,
        )

    def _maker(self, node: Node) -> Node:
        """The operator that computed it: not what takes a part out of a tuple."""
        return self.nodes.makers[self.nodes.behind(node.output, (*SAME_VALUE, "TupleGetItem"))]

    def _kernel(self, node: Node) -> str:
        return self.nodes.kind(node).removeprefix(CUSTOM)

    def _operands(self, node: Node) -> list[Operand]:
        """Those that are numbers, weights first."""
        keys = list(dict.fromkeys(leaf for key in node.inputs for leaf in self.nodes.leaves(key)))
        keys.sort(key=lambda key: key not in self.nodes.parameters)
        return [Operand(name=self._key_name(key), range=self.ranges[key]) for key in keys if key in self.ranges]

    def _key_name(self, key: str) -> str:
        return self.nodes.parameters[key] if key in self.nodes.parameters else self._name(self.nodes.makers[key])

    def _name(self, node: Node) -> str:
        """A tensor in words."""
        if name := self._gradient_of(node):
            return f"gradient of {name}"
        maker = self._maker(node)
        return f"result of {self._kernel(maker)} in {self._place(maker)}"

    def _gradient_of(self, node: Node) -> str:
        """The weight whose gradient it is."""
        own = self._uncast(node.output)
        return next((name for key, name in self.gradients.items() if self._uncast(key) == own), "")

    def _uncast(self, key: str) -> str:
        """Behind casts and changes of shape."""
        return self.nodes.behind(key, (*SAME_VALUE, "Cast", "Reshape"))

    def _place(self, node: Node) -> str:
        """The Cell that it belongs to; of the nearest results around it, where its own scope says another's."""
        seen, waiting = {node.output}, [node]
        for towards in (self._producers, self._consumers):
            for near in waiting:
                if self._is_in_its_place(near):
                    return place_of(near.scope)
                if weight := self._weight_of(near):
                    return weight.removesuffix(".weight")
                further = [other for other in towards(near) if other.output not in seen]
                seen.update(other.output for other in further)
                waiting += further
            waiting = [node]
        return place_of(node.scope)

    def _weight_of(self, node: Node) -> str:
        """A weight among its operands, or whose gradient it is."""
        keys = map(self._uncast, node.inputs)
        weight = next((self.nodes.parameters[key] for key in keys if key in self.nodes.parameters), "")
        return weight or self._gradient_of(node)

    def _is_in_its_place(self, node: Node) -> bool:
        """Whether its scope is its own. What a function makes that several Cells call has the scope of one of them, so
        that one has more such operators than the same Cell of other layers."""
        operator, place = self.nodes.kind(node), place_of(node.scope)
        if node.scope.startswith(GRADIENTS) or operator in VIEWS:
            return False
        if operator.startswith(CUSTOM) or not LAYER.search(place) or sum(self._counts[operator].values()) == 1:
            return True
        alike = {LAYER.sub(f"layers.{number}", place) for number in range(self.num_layers)}
        return self._counts[operator][place] == min(self._counts[operator][other] for other in alike)

    @cached_property
    def _counts(self) -> Mapping[str, Counter[str]]:
        """How often an operator stands in a place."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for node in self.nodes.all:
            found[self.nodes.kind(node)][place_of(node.scope)] += 1
        return found

    def _producers(self, node: Node) -> list[Node]:
        keys = [self.nodes.behind(key) for key in node.inputs]
        return [self.nodes.makers[key] for key in keys if key in self.nodes.makers]

    def _consumers(self, node: Node) -> list[Node]:
        return self.nodes.readers.get(node.output, [])

    def _sample(self, node: Node, found: Range) -> tuple[Optional[int], Optional[int]]:
        """Sequence and token of the first number that is not finite: rows lie in the order of the batch."""
        rows, (count, length) = next(iter(getattr(node.type, "shape")), 0), self.shape
        if rows == 0 or rows % count or self._gradient_of(node) or node.output in self._of_weights:
            return None, None
        if rows != count * length and self._place(self._maker(node)).startswith("loss"):
            return None, None  # the loss takes its rows in slices
        row = found.first_bad[0]
        return row // (rows // count), row % length if rows == count * length else None

    @cached_property
    def _of_weights(self) -> set[str]:
        """Results of weights and constants alone."""
        seen = set(self.nodes.parameters)
        for node in self.nodes.all:
            operands = [key for key in map(self.nodes.behind, node.inputs) if key not in self.nodes.graph.constants]
            if operands and all(key in seen for key in operands):
                seen.add(node.output)
        return seen
