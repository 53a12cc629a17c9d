"""Where the time of a training step goes: by phase, operator, part of the model and Cell; and what memory it holds.

The compiler names operators that are alike after the first that it met, so a name that one layer has more often than
the others is not believed there: its kernel takes the Cell of the parameter that it reads or makes the gradient of, or
else the layer that its operands come from. Phases follow the data: what depends on the loss is backward; what depends
on the update, or stands in it, is optimizer.
"""

from __future__ import annotations

import dataclasses
import re
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from statistics import median
from typing import Any, Iterator, Mapping, Optional, Sequence

from mindmodel.debug.graph.sources import Source
from mindmodel.debug.graph.summary import num_bytes_of
from mindmodel.debug.profile.flop import flop_of
from mindmodel.debug.profile.kernel_graph import Kernel, KernelGraph, Value
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
    part_of,
    place_of,
)

PHASES = ("forward", "loss", "backward", "optimizer")
DATA, REST = "data", "not in kernels"
"""Reading the batch; and all that is neither this nor a kernel: Python, and MindSpore between kernels."""
LOSS = "/loss-"
FIRST = ("decoder", "embedding")
"""Parts of the model before its layers; decoder is what stands in it and in none of its Cells."""
ALIGNMENT = 512
"""Bytes; MindSpore's pool hands out multiples."""
UPDATES = ("Custom:square_sum", "Custom:adamw")
"""Our own kernels of the update, which the compiler names after no Cell."""
ANY_OR_ONE = re.compile(r"\blayers\.(\d+|\*)")
CAST = "Cast"
"""Named after the first of all that the compiler met: a cast stands where its operand was made."""
SUMS = (CAST, "Add", "AddN")
"""What may stand between a gradient and the update of its parameter, beside kernels of the update."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """A kernel as it ran; times in ns of the system's clock."""

    scope: str
    begin_ns: int
    end_ns: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step that was profiled: when its batch was there, and what ran in it.

    Attributes:
        memory: bytes that MindSpore's pool has given out, after each change; pairs of ns and bytes.
    """

    begin_ns: int
    data_ns: int
    end_ns: int
    events: tuple[Event, ...]
    memory: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What was measured.

    Attributes:
        graph: the kernels that ran.
        sources: lines of Python by scope.
        plain_s: seconds of steps that were not profiled, made in between.
        parameter_bytes: by what they are, weights or optimizer.
        process_bytes: largest resident size of the process so far, with compilation.
        peak_flops: of the machine in matrix products, and where that number is from.
    """

    graph: KernelGraph
    sources: Mapping[str, Source]
    steps: tuple[Step, ...]
    plain_s: tuple[float, ...]
    parameter_bytes: Mapping[str, int]
    process_bytes: int
    peak_flops: float
    peak_name: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """Kernels alike in all layers, of a step on average.

    Attributes:
        place: the Cell.
        count: of them in a step.
        flop: of the matrix products of all.
        shapes: of the factors of a product; empty else.
        where: a line of Python that calls one.
    """

    place: str
    operator: str
    phase: str
    count: int
    seconds: float
    flop: int
    shapes: str
    where: str

    @property
    def flop_s(self) -> float:
        """FLOP a second."""
        return self.flop / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, kw_only=True)
class Held:
    """Tensors alive at the peak, alike in all layers. `last_read`: the operator that reads them last."""

    place: str
    operator: str
    phase: str
    type: str
    count: int
    num_bytes: int
    last_read: str


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Of one step.

    Attributes:
        peak_bytes: most that MindSpore's pool gave out, as it recorded; without weights and moments.
        fixed_bytes: of these, what is there all along: inputs and constants.
        unexplained_bytes: of these, what the graph's tensors and that do not account for.
        peak_kernel: what ran then, and its number in the order of a step.
        parameter_bytes, process_bytes: as of Recording.
        by_phase: most bytes in each phase.
        curve: bytes while each kernel runs.
        held: at the peak, largest first.
    """

    peak_bytes: int
    fixed_bytes: int
    unexplained_bytes: int
    peak_index: int
    peak_kernel: str
    parameter_bytes: Mapping[str, int]
    process_bytes: int
    by_phase: Mapping[str, int]
    curve: tuple[int, ...]
    held: tuple[Held, ...]


@dataclass(frozen=True, kw_only=True)
class StepProfile:
    """A step on average; all seconds are of one step.

    Attributes:
        step_s: of the profiled steps, the mean; phases add up to this.
        median_s, plain_s: medians of the profiled steps, and of steps that were not profiled, made in between.
        operators: count and seconds of each kind, longest first.
        parts: seconds of each part of the model by phase, in the order of the model.
        rows: of the Cells, longest first.
        num_fused: kernels that MindSpore made of several operators.
    """

    recipe: str
    device: str
    mindspore: str
    kernels: str
    threads: int
    num_steps: int
    step_s: float
    median_s: float
    plain_s: float
    slowest_s: float
    fastest_s: float
    peak_flops: float
    peak_name: str
    phases: Mapping[str, float]
    operators: Mapping[str, tuple[int, float]]
    parts: Mapping[str, Mapping[str, float]]
    rows: tuple[Row, ...]
    num_kernels: int
    num_fused: int
    memory: MemoryUse

    @property
    def overhead(self) -> float:
        """What profiling adds to a step, as a share of it."""
        return self.median_s / self.plain_s - 1

    @property
    def products(self) -> tuple[Row, ...]:
        """Rows with matrix products."""
        return tuple(row for row in self.rows if row.flop)

    def to_json(self) -> dict[str, Any]:
        """As the command prints it for scripts."""
        rows = [{**dataclasses.asdict(row), "flop_s": row.flop_s} for row in self.rows]
        return {**dataclasses.asdict(self), "overhead": self.overhead, "rows": rows}


@dataclass(frozen=True, kw_only=True)
class Placed(PlacedKernel):
    """A kernel with its Cell and phase."""

    kernel: Kernel


def profile_of(
    recording: Recording, *, recipe: str, device: str, mindspore: str, kernels: str, threads: int
) -> StepProfile:
    """The profile of what was measured; the arguments are for the record."""
    steps, placed = recording.steps, placed_kernels(recording.graph, recording.steps[0])
    seconds = _seconds(steps)
    walls = [(step.end_ns - step.begin_ns) / 1e9 for step in steps]
    return StepProfile(
        recipe=recipe,
        device=device,
        mindspore=mindspore,
        kernels=kernels,
        threads=threads,
        num_steps=len(steps),
        step_s=sum(walls) / len(walls),
        median_s=median(walls),
        plain_s=median(recording.plain_s),
        slowest_s=max(walls),
        fastest_s=min(walls),
        peak_flops=recording.peak_flops,
        peak_name=recording.peak_name,
        phases=_phases(placed, seconds, steps),
        operators=_operators(placed, seconds),
        parts=_parts(placed, seconds),
        rows=_rows(placed, seconds, recording.sources),
        num_kernels=len(placed),
        num_fused=sum(bool(one.kernel.parts) for one in placed.values()),
        memory=_Memory(recording, placed).use(),
    )


def _seconds(steps: Sequence[Step]) -> dict[str, float]:
    """Of each kernel in a step on average, by scope."""
    totals: Counter[str] = Counter()
    for step in steps:
        for event in step.events:
            totals[event.scope] += event.end_ns - event.begin_ns
    return {scope: total / 1e9 / len(steps) for scope, total in totals.items()}


def _phases(placed: Mapping[str, Placed], seconds: Mapping[str, float], steps: Sequence[Step]) -> dict[str, float]:
    """What a step consists of; the parts add up to it."""
    found = {DATA: sum(step.data_ns - step.begin_ns for step in steps) / 1e9 / len(steps)}
    for phase in PHASES:
        found[phase] = sum(seconds[scope] for scope, one in placed.items() if one.phase == phase)
    wall = sum(step.end_ns - step.begin_ns for step in steps) / 1e9 / len(steps)
    return {**found, REST: wall - sum(found.values())}


def _operators(placed: Mapping[str, Placed], seconds: Mapping[str, float]) -> dict[str, tuple[int, float]]:
    counts: Counter[str] = Counter(one.operator for one in placed.values())
    totals: Counter[str] = Counter()
    for scope, one in placed.items():
        totals[one.operator] += seconds[scope]  # type: ignore[assignment]  # a Counter of floats
    return {operator: (counts[operator], total) for operator, total in totals.most_common()}


def _parts(placed: Mapping[str, Placed], seconds: Mapping[str, float]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for scope, one in placed.items():
        row = found.setdefault(part_of(one.place), dict.fromkeys(PHASES, 0.0))
        row[one.phase] += seconds[scope]
    return dict(sorted(found.items(), key=lambda item: _in_order(item[0])))


def _in_order(part: str) -> tuple[int, int, str]:
    """The embedding, the layers in their order, and what stands behind them."""
    layer = LAYER.fullmatch(part)
    return (1, int(part.partition(".")[2]), "") if layer else (0 if part in FIRST else 2, 0, part)


def _rows(
    placed: Mapping[str, Placed], seconds: Mapping[str, float], sources: Mapping[str, Source]
) -> tuple[Row, ...]:
    alike: dict[tuple[str, ...], list[str]] = {}
    for scope, one in placed.items():
        key = of_any_layer(one.place), one.operator, one.phase, _shapes(one.kernel)
        alike.setdefault(key, []).append(scope)
    rows = [
        Row(
            place=place,
            operator=operator,
            phase=phase,
            count=len(scopes),
            seconds=sum(seconds[scope] for scope in scopes),
            flop=sum(flop_of(placed[scope].kernel) for scope in scopes),
            shapes=shapes,
            where=_where(placed[scopes[0]].kernel, sources),
        )
        for (place, operator, phase, shapes), scopes in alike.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.seconds))


def _shapes(kernel: Kernel) -> str:
    """Of the factors of a product; of attention that of the projection it reads."""
    if not flop_of(kernel) or kernel.parts:
        return ""
    return " x ".join(str(list(kind.shape)) for kind in kernel.operands[:1 if "attention" in kernel.operator else 2])


def _where(kernel: Kernel, sources: Mapping[str, Source]) -> str:
    """A line; of a fused kernel that of its first operator that has one."""
    scopes = [kernel.scope, *(part.scope for part in kernel.parts)]
    return next((str(sources[scope]) for scope in scopes if scope in sources), "")


def placed_kernels(graph: KernelGraph, step: Step) -> dict[str, Placed]:
    """The kernels of a step by scope, in the order in which they ran, with Cell and phase."""
    return _Places(graph, [graph.by_scope[event.scope] for event in step.events]).found()


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


class _Memory:
    """The tensors of the graph over the kernels of a step, beside what MindSpore's pool recorded."""

    def __init__(self, recording: Recording, placed: Mapping[str, Placed]):
        self.recording, self.graph = recording, recording.graph
        self.placed = list(placed.values())
        self.step = recording.steps[-1]
        self.number = {one.kernel.key: number for number, one in enumerate(self.placed)}

    def use(self) -> MemoryUse:
        measured, tensors = self._measured(), self._of_tensors()
        differences = sorted(a - b for a, b in zip(measured, tensors))
        fixed = max(0, differences[len(differences) // 2])
        peak = max(range(len(measured)), key=measured.__getitem__)
        by_phase: dict[str, int] = {}
        for one, number in zip(self.placed, measured):
            by_phase[one.phase] = max(number, by_phase.get(one.phase, 0))
        return MemoryUse(
            peak_bytes=measured[peak],
            fixed_bytes=fixed,
            unexplained_bytes=measured[peak] - fixed - tensors[peak],
            peak_index=peak,
            peak_kernel=str(self.placed[peak]),
            parameter_bytes=self.recording.parameter_bytes,
            process_bytes=self.recording.process_bytes,
            by_phase={phase: by_phase[phase] for phase in PHASES if phase in by_phase},
            curve=tuple(measured),
            held=tuple(self._held(peak)),
        )

    def _measured(self) -> list[int]:
        """Bytes of the pool while each kernel of the last step runs."""
        times = [time for time, _ in self.step.memory]
        before = [bisect_right(times, event.begin_ns) for event in self.step.events]
        return [self.step.memory[number - 1][1] if number else 0 for number in before]

    def _last_read(self, value: Value) -> int:
        """Number of the kernel until which a tensor is held."""
        if value in self.graph.outputs:
            return len(self.placed) - 1
        readers = [self.number[key] for key in self.graph.readers.get(value, ())]
        return max(readers, default=self.number[value.kernel])

    def _tensors(self) -> Iterator[tuple[Placed, Value, int]]:
        """Each tensor with its bytes in the pool."""
        for one in self.placed:
            for index, kind in enumerate(one.kernel.results):
                num_bytes = -(-num_bytes_of(kind) // ALIGNMENT) * ALIGNMENT
                yield one, Value(kernel=one.kernel.key, index=index), num_bytes

    def _of_tensors(self) -> list[int]:
        """Bytes of the graph's tensors while each kernel runs."""
        changes = [0] * (len(self.placed) + 1)
        for one, value, num_bytes in self._tensors():
            changes[self.number[one.kernel.key]] += num_bytes
            changes[self._last_read(value) + 1] -= num_bytes
        return list(accumulate(changes[:-1]))

    def _held(self, moment: int) -> list[Held]:
        alike: Counter[tuple[str, ...]] = Counter()
        sizes: dict[tuple[str, ...], int] = {}
        for one, value, num_bytes in self._tensors():
            last = self._last_read(value)
            if self.number[one.kernel.key] <= moment <= last:
                place = of_any_layer(one.place)
                kind, reader = one.kernel.results[value.index], self.placed[last]
                key = place, one.operator, one.phase, str(kind), reader.as_reader
                alike[key] += 1
                sizes[key] = num_bytes
        held = [
            Held(place=place, operator=operator, phase=phase, type=kind, count=count,
                 num_bytes=count * sizes[place, operator, phase, kind, reader], last_read=reader)
            for (place, operator, phase, kind, reader), count in alike.items()
        ]
        return sorted(held, key=lambda row: -row.num_bytes)
