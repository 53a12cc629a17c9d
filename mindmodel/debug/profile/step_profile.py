"""Where the time of a training step goes: by phase, operator, part of the model and Cell."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from statistics import median
from typing import Any, Mapping, Sequence

from mindmodel.debug.graph.nodes import in_model_order
from mindmodel.debug.graph.sources import Source
from mindmodel.debug.profile.flop import flop_of
from mindmodel.debug.profile.kernel_graph import Kernel
from mindmodel.debug.profile.memory import MemoryUse, memory_of
from mindmodel.debug.profile.places import PHASES, Placed, placed_kernels
from mindmodel.debug.profile.recording import Recording, Step
from mindmodel.dryrun.scopes import of_any_layer, part_of

DATA, REST = "data", "not in kernels"
"""Reading the batch; and all that is neither this nor a kernel: Python, and MindSpore between kernels."""


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


def profile_of(recording: Recording, *, recipe: str, kernels: str, threads: int) -> StepProfile:
    """The profile of what was measured on this CPU; the names are for the record."""
    steps, placed = recording.steps, placed_kernels(recording)
    seconds = _seconds(steps)
    walls = [(step.end_ns - step.begin_ns) / 1e9 for step in steps]
    return StepProfile(
        recipe=recipe,
        device="cpu",
        mindspore=version("mindspore"),
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
        memory=memory_of(recording, placed),
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
    return {part: found[part] for part in sorted(found, key=in_model_order)}


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
