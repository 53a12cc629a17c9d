"""The nodes of a compiled graph, and what is looked up among them: their operators, who made and who reads a value."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from typing import Container, Sequence

from mindmodel.dryrun.graph import Graph, Node
from mindmodel.dryrun.scopes import LAYER

CALL = "(call)"
"""The kind of a node that calls a function of the graph."""
CUSTOM = "Custom:"
"""Begins the kind of our own C++ kernels."""
SAME_VALUE = ("Depend", "Load")
"""Operators that give their first operand again, after others."""
FIRST = ("decoder", "embedding")
"""Parts of the model before its layers; decoder is what stands in it and in none of its Cells."""


class Nodes:
    """The nodes of a graph, of some of its functions: by default of its main one alone."""

    def __init__(self, graph: Graph, nodes: Sequence[Node] = ()):
        self.graph, self.all = graph, nodes or graph.main.nodes
        self.makers = {node.output: node for node in self.all}
        self.parameters = {parameter.key: parameter.name for parameter in graph.parameters}

    def kind(self, node: Node) -> str:
        """Its operator; of our own kernels `Custom:NAME`."""
        primitive = self.graph.primitives.get(node.target)
        if primitive is None:
            return CALL
        function = primitive.attributes.get("func_name") if primitive.name == "Custom" else None
        return f"{CUSTOM}{function.rpartition(':')[2]}" if isinstance(function, str) else primitive.name

    def behind(self, key: str, kinds: Container[str] = SAME_VALUE) -> str:
        """The key of the value that operators of these kinds have passed on as the one of this key."""
        while (maker := self.makers.get(key)) is not None and self.kind(maker) in kinds and maker.inputs:
            key = maker.inputs[0]
        return key

    def leaves(self, key: str) -> list[str]:
        """The keys of the tensors in a nest of tuples."""
        key = self.behind(key)
        maker = self.makers.get(key)
        if maker is None or self.kind(maker) != "MakeTuple":
            return [key]
        return [leaf for part in maker.inputs for leaf in self.leaves(part)]

    @cached_property
    def readers(self) -> dict[str, list[Node]]:
        """The nodes that take each value, in order, behind what only orders."""
        found: dict[str, list[Node]] = defaultdict(list)
        for node in self.all:
            for key in map(self.behind, node.inputs):
                found[key].append(node)
        return found


def in_model_order(part: str) -> tuple[int, int, str]:
    """A key to sort parts by: the embedding, the layers in their order, and what stands behind them."""
    layer = LAYER.fullmatch(part)
    return (1, int(part.partition(".")[2]), "") if layer else (0 if part in FIRST else 2, 0, part)
