"""What the nodes of a compiled graph give, by MindSpore's own kernels: the graph is run with them as its outputs.

MindSpore itself has no way to ask for them on CPU but dumps of the whole process.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Mapping, Optional, Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindmodel.debug.graph.missing import BUNDLE, REFERENCE
from mindmodel.debug.graph.nodes import SAME_VALUE, Nodes
from mindmodel.dryrun.graph import Node, TensorType
from mindmodel.dryrun.mindir import load_graph, model_class
from mindmodel.errors import GraphError, first_line
from mindmodel.parallel.graph_cache import GraphCache

HELD_BYTES = 2**30
"""Of the results that are held at once; where there are more, the graph is computed several times."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """The numbers of a tensor.

    Attributes:
        type: dtype and shape.
        low, high: of the finite ones; None where there are none.
        num_bad: of those that are not finite.
        first_bad: index of the first of those, and what it is.
        norm: of the finite ones.
    """

    type: str
    low: Optional[float]
    high: Optional[float]
    num_bad: int = 0
    first_bad: tuple[int, ...] = ()
    bad: str = ""
    norm: float = 0.0


def range_of(array: np.ndarray) -> Range:
    """Of an array of any dtype of numbers."""
    numbers = array.astype(np.float32) if array.dtype.name == "bfloat16" else array
    finite = np.isfinite(numbers)
    kept = numbers if finite.all() else numbers[finite]
    first = tuple(int(place[0]) for place in np.nonzero(~finite)) if kept.size < numbers.size else ()
    return Range(
        type=f"{array.dtype.name}{list(array.shape)}",
        low=float(kept.min()) if kept.size else None,
        high=float(kept.max()) if kept.size else None,
        num_bad=numbers.size - kept.size,
        first_bad=first,
        bad=str(numbers[first]) if kept.size < numbers.size else "",
        norm=float(np.sqrt(np.square(kept, dtype=np.float64).sum())),
    )


class Values:
    """A graph whose nodes can be asked for what they give.

    Args:
        mindir: the graph as MindSpore exports it, without functions of its own.
        held_bytes: most that is held at once.
    """

    def __init__(self, mindir: bytes, held_bytes: int = HELD_BYTES):
        self.nodes, self._mindir, self._held_bytes = Nodes(load_graph(mindir)), mindir, held_bytes
        self._cells: dict[str, nn.Cell] = {}

    def tensors(self) -> list[Node]:
        """The nodes that give one tensor of numbers, in an order in which they can be computed."""
        return [
            node for node in self.nodes.all
            if isinstance(node.type, TensorType) and self.nodes.kind(node) not in (*SAME_VALUE, "UpdateState")
        ]

    def compute(
        self, nodes: Sequence[Node], inputs: Sequence[Tensor], parameters: Mapping[str, Tensor], cache: GraphCache
    ) -> Iterator[tuple[Node, np.ndarray]]:
        """What some nodes give, in their order; always the same nodes.

        Args:
            inputs: of the graph.
            parameters: of the graph, by their own names.

        Raises:
            GraphError: if MindSpore cannot, as without memory for them.
        """
        for group in self._groups(nodes):
            try:
                with cache.compiling():
                    results = self._prepared(group, parameters)(*inputs)
                    arrays = [result.asnumpy() for result in (results if isinstance(results, tuple) else (results,))]
            except (MemoryError, RuntimeError, TypeError, ValueError) as error:
                said = first_line(error)
                raise GraphError(f"results of operators cannot be had: {said}. --debug shows all.") from error
            yield from zip(group, arrays)

    def _prepared(self, group: Sequence[Node], parameters: Mapping[str, Tensor]) -> nn.Cell:
        """The graph with these results, compiled once, with these parameters."""
        key = group[0].output
        if key not in self._cells:
            self._cells[key] = self._cell(group, parameters)
        for parameter in self._cells[key].get_parameters():
            parameter.set_data(parameters[parameter.name])
        return self._cells[key]

    def _groups(self, nodes: Sequence[Node]) -> Iterator[list[Node]]:
        """Nodes whose results may be held at once."""
        group: list[Node] = []
        held = 0
        for node in nodes:
            assert isinstance(node.type, TensorType)
            size = int(np.prod(node.type.shape)) * node.type.dtype.itemsize
            if group and held + size > self._held_bytes:
                yield group
                group, held = [], 0
            group.append(node)
            held += size
        if group:
            yield group

    def _cell(self, nodes: Sequence[Node], parameters: Mapping[str, Tensor]) -> nn.Cell:
        """The graph with these results."""
        model = model_class().FromString(self._mindir)
        graph = model.graph
        graph.ClearField("output")
        model.primitives.add(name=BUNDLE, op_type="MakeTuple")
        graph.node.add(op_type=f"{REFERENCE}{BUNDLE}", name="all", output=["all"], input=[n.output for n in nodes])
        graph.output.add(name="all")
        with tempfile.TemporaryDirectory(prefix="mindmodel-values-") as folder:
            path = Path(folder, "values.mindir")
            path.write_bytes(model.SerializeToString())
            return nn.GraphCell(ms.load(str(path)), dict(parameters))
