"""The Cell and the phase of each kernel of a step.

The compiler names operators that are alike after the first that it met, so a name that one layer has more often than
the others is not believed there: its kernel takes the Cell of the parameter that it reads or makes the gradient of, or
else the layer that its operands come from. Phases follow the data: what depends on the loss is backward; what depends
on the update, or stands in it, is optimizer.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Optional, Sequence

from mindmodel.debug.profile.kernel_graph import Kernel, KernelGraph, Value
from mindmodel.debug.profile.recording import Recording
from mindmodel.dryrun.memory_trace import PREFIXES
from mindmodel.dryrun.scopes import (
    ANY_LAYER,
    GRADIENTS,
    LAYER,
    STEP,
    PlacedKernel,
    is_update,
    of_any_layer,
    operator_of,
    place_of,
)

PHASES = ("forward", "loss", "backward", "optimizer")
LOSS = "/loss-"
UPDATES = ("Custom:square_sum", "Custom:adamw")
"""Our own kernels of the update, which the compiler names after no Cell."""
ANY_OR_ONE = re.compile(r"\blayers\.(\d+|\*)")
CAST = "Cast"
"""Named after the first of all that the compiler met: a cast stands where its operand was made."""
SUMS = (CAST, "Add", "AddN")
"""What may stand between a gradient and the update of its parameter, beside kernels of the update."""


@dataclass(frozen=True, kw_only=True)
class Placed(PlacedKernel):
    """A kernel with its Cell and phase."""

    kernel: Kernel


def placed_kernels(recording: Recording) -> dict[str, Placed]:
    """The kernels by scope, in the order in which they ran in the first step, with Cell and phase."""
    graph = recording.graph
    return _Places(graph, [graph.by_scope[event.scope] for event in recording.steps[0].events]).found()


class _Places:
    """Finds the Cell and the phase of each kernel, in the order in which they ran."""

    def __init__(self, graph: KernelGraph, kernels: Sequence[Kernel]):
        self.graph, self.kernels = graph, kernels
        self.phases: dict[str, str] = {}
        self.places: dict[str, str] = {}
        self._leading: dict[str, bool] = {}

    def found(self) -> dict[str, Placed]:
        for kernel in self.kernels:
            self.phases[kernel.key] = self._phase(kernel)
        for kernel in self.kernels:
            self.places[kernel.key] = self._place(kernel)
        return {
            kernel.scope: Placed(
                kernel=kernel, operator=kernel.operator, place=self.places[kernel.key], phase=self.phases[kernel.key]
            )
            for kernel in self.kernels
        }

    def _sources(self, kernel: Kernel) -> list[str]:
        """Keys of the kernels that made what this one reads."""
        return [value.kernel for value in self.graph.sources[kernel.key] if value.kernel in self.phases]

    def _phase(self, kernel: Kernel) -> str:
        before = {self.phases[key] for key in self._sources(kernel)}
        scopes = _scopes(kernel)
        if "optimizer" in before or kernel.operator in UPDATES or any(map(is_update, scopes)):
            return "optimizer"
        if any(LOSS in scope for scope in scopes):
            return "loss"
        is_gradient = any(scope.startswith(GRADIENTS) for scope in scopes)
        return "backward" if is_gradient or before & {"loss", "backward"} else "forward"

    def _place(self, kernel: Kernel) -> str:
        if self.phases[kernel.key] == "optimizer":
            return "optimizer"
        if kernel.operator == CAST and (sources := self._sources(kernel)):
            return self.places[sources[0]]
        if own := [place_of(scope) for scope in _scopes(kernel) if self._is_own(scope, self.phases[kernel.key])]:
            return Counter(own).most_common(1)[0][0]
        if parameter := self._parameter(kernel):
            return parameter.rpartition(".")[0]
        return self._in_layer_of_operands(kernel)

    def _is_own(self, scope: str, phase: str) -> bool:
        """Whether a name stands for one operator's place: it stands in all layers as often, or not in the fullest."""
        place = place_of(scope)
        if operator_of(scope) == CAST:
            return False
        layer = LAYER.search(place)
        if layer is None:
            return place != STEP
        counts = self._counts[_name_in_any_layer(scope), phase]
        even = len(counts) == self._num_layers and len(set(counts.values())) == 1
        return even or counts[layer[0]] < max(counts.values())

    @cached_property
    def _counts(self) -> dict[tuple[str, str], Counter[str]]:
        """How often each name stands in each layer, in each phase."""
        found: dict[tuple[str, str], Counter[str]] = {}
        for kernel in self.kernels:
            for scope in _scopes(kernel):
                if layer := LAYER.search(place_of(scope)):
                    name = _name_in_any_layer(scope), self.phases[kernel.key]
                    found.setdefault(name, Counter())[layer[0]] += 1
        return found

    @cached_property
    def _num_layers(self) -> int:
        return len(set().union(*self._counts.values()))

    def _parameter(self, kernel: Kernel) -> Optional[str]:
        """The weight that a kernel reads, or makes the gradient of."""
        if names := self._weights(kernel.key):
            return names[0]
        if self.phases[kernel.key] != "backward":
            return None
        level = [kernel.key]
        while level := [key for before in level for key in self._readers(before) if self._leads_to_update(key)]:
            for key in level:
                if weights := self._weights(key):
                    return weights[0] if len(weights) == 1 else None
        return None

    def _readers(self, key: str) -> list[str]:
        results = range(len(self.graph.kernels[key].results))
        return [one for index in results for one in self.graph.readers.get(Value(kernel=key, index=index), ())]

    def _leads_to_update(self, key: str) -> bool:
        """Whether a kernel is one of the update, or a cast or a sum that nothing else reads."""
        if key not in self._leading:
            is_sum = self.graph.kernels[key].operator in SUMS
            ends_there = is_sum and all(map(self._leads_to_update, self._readers(key)))
            self._leading[key] = self.phases[key] == "optimizer" or ends_there
        return self._leading[key]

    def _weights(self, key: str) -> list[str]:
        """Those that a kernel reads or writes, or casts of them; inputs and counters have no dot in their names."""
        own = [n for n in self.graph.parameters[key] if "." in n and not n.startswith(tuple(PREFIXES))]
        casts = (v.kernel for v in self.graph.sources[key] if self.graph.kernels[v.kernel].operator == CAST)
        return own or [name for cast in casts for name in self._weights(cast)]

    def _in_layer_of_operands(self, kernel: Kernel) -> str:
        """In the layer that its operands come from: the last in the forward pass, the first after. Its own Cell there,
        but for what automatic differentiation made: that is named alike in all Cells, and stands with its operand."""
        scopes, backward = _scopes(kernel), self.phases[kernel.key] == "backward"
        place = next(filter(STEP.__ne__, map(place_of, scopes)), ANY_LAYER)
        before = {
            int(layer[0].partition(".")[2]): self.places[key]
            for key in self._sources(kernel)
            if (not backward or self.phases[key] == "backward") and (layer := LAYER.search(self.places[key]))
        }
        if not before:
            return STEP if place == ANY_LAYER else place
        number = min(before) if backward else max(before)
        return before[number] if scopes[0].startswith(GRADIENTS) else ANY_OR_ONE.sub(f"layers.{number}", place)


def _scopes(kernel: Kernel) -> list[str]:
    return [part.scope for part in kernel.parts] or [kernel.scope]


def _name_in_any_layer(scope: str) -> str:
    """Cell and operator without their numbers."""
    kind = GRADIENTS if scope.startswith(GRADIENTS) else ""
    return f"{kind}{of_any_layer(place_of(scope))} {operator_of(scope)}"
