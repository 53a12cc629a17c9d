"""What MindSpore's profiler recorded of training steps: when each kernel ran, and the memory that its pool gave out.

Source: cpu_op_execute_timestamp_*.txt (`scope;device;begin ns,ms,thread ...`) and cpu_ms_memory_record_*.txt, which
MindSpore 2.9 writes.
"""

from __future__ import annotations

import csv
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Mapping, Sequence

from mindmodel.debug.graph.sources import Source
from mindmodel.debug.profile.kernel_graph import KernelGraph
from mindmodel.errors import GraphError

TIMES, MEMORY = "cpu_op_execute_timestamp_*.txt", "cpu_ms_memory_record_*.txt"

Times = tuple[int, int, int]
"""When a step began, when its batch was there and when it ended: ns of the system's clock."""


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


def read_steps(folder: Path, times: Sequence[Times]) -> tuple[Step, ...]:
    """What the profiler wrote into a folder of the steps that ran at some times.

    Raises:
        GraphError: if it saw nothing in one of them.
    """
    events = sorted(_events(folder), key=lambda event: event.begin_ns)
    memory, began = sorted(_memory(folder)), [event.begin_ns for event in events]
    steps = tuple(
        Step(
            begin_ns=begin,
            data_ns=read,
            end_ns=end,
            events=tuple(events[bisect_left(began, begin):bisect_left(began, end)]),
            memory=tuple(memory[bisect_left(memory, (begin, 0)):bisect_left(memory, (end, 0))]),
        )
        for begin, read, end in times
    )
    if not all(step.events and step.memory for step in steps):
        raise GraphError("MindSpore's profiler saw no kernels. Another MindSpore than 2.9? `mindmodel doctor` tells.")
    return steps


def _events(folder: Path) -> Iterator[Event]:
    for path in folder.glob(TIMES):
        for line in path.read_text().splitlines():
            scope, _, runs = line.split(";")
            for run in runs.split():
                begin, milliseconds, _ = run.split(",")
                yield Event(scope=scope, begin_ns=int(begin), end_ns=int(begin) + round(float(milliseconds) * 1e6))


def _memory(folder: Path) -> Iterator[tuple[int, int]]:
    for path in folder.glob(MEMORY):
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                yield int(row["Timestamp(ns)"]), int(row["Total Allocated(Byte)"])
