"""Profiled steps as a trace that chrome://tracing and ui.perfetto.dev read.

Source: "Trace Event Format", https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU: complete
events (X), counters (C) and metadata (M); times in microseconds.
"""

from __future__ import annotations

from typing import Any, Iterator, Mapping

from mindmodel.debug.profile.flop import flop_of
from mindmodel.debug.profile.places import Placed, placed_kernels
from mindmodel.debug.profile.recording import Recording, Step
from mindmodel.debug.profile.step_profile import DATA

STEPS, KERNELS = 0, 1
"""Rows of the picture."""


def chrome_trace(recording: Recording, title: str) -> dict[str, Any]:
    """The trace as a JSON object; time begins with the first step."""
    placed, begin = placed_kernels(recording), recording.steps[0].begin_ns
    events = [_named("process_name", title), _named("thread_name", "steps", STEPS)]
    events += [_named("thread_name", "kernels", KERNELS)]
    for number, step in enumerate(recording.steps, 1):
        events += _events(step, number, placed, begin)
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _events(step: Step, number: int, placed: Mapping[str, Placed], zero: int) -> Iterator[dict[str, Any]]:
    yield _span(f"step {number}", STEPS, step.begin_ns - zero, step.end_ns - step.begin_ns)
    yield _span(DATA, KERNELS, step.begin_ns - zero, step.data_ns - step.begin_ns)
    for event in step.events:
        one = placed[event.scope]
        details = {"place": one.place, "phase": one.phase, "scope": event.scope, "flop": flop_of(one.kernel),
                   "reads": [str(kind) for kind in one.kernel.operands],
                   "makes": [str(kind) for kind in one.kernel.results]}
        name = f"{one.operator} {one.place}"
        span = _span(name, KERNELS, event.begin_ns - zero, event.end_ns - event.begin_ns)
        yield {**span, "cat": one.phase, "args": details}
    for when, num_bytes in step.memory:
        yield {"name": "memory", "ph": "C", "pid": 0, "ts": (when - zero) / 1e3, "args": {"bytes": num_bytes}}


def _span(name: str, row: int, begin_ns: int, length_ns: int) -> dict[str, Any]:
    return {"name": name, "ph": "X", "pid": 0, "tid": row, "ts": begin_ns / 1e3, "dur": length_ns / 1e3}


def _named(kind: str, name: str, row: int = 0) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": 0, "tid": row, "args": {"name": name}}
