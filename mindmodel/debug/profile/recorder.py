"""Runs training steps under MindSpore's profiler on the CPU, and reads what it writes.

The profiler is used without its Python front, which adds tens of milliseconds to a step and writes folders into the
working one: it is switched on and off around single steps, and its files lie in a temporary folder.

Source: cpu_op_execute_timestamp_*.txt (`scope;device;begin ns,ms,thread ...`) and cpu_ms_memory_record_*.txt, which
MindSpore 2.9 writes.
"""

from __future__ import annotations

import csv
import resource
import tempfile
import time
from bisect import bisect_left
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Sequence

from mindspore import _c_expression

from mindmodel.debug.graph.compile import KERNELS, read_stage_sources, read_stages, saved_stages
from mindmodel.debug.profile.kernel_graph import KernelGraph, read_kernels
from mindmodel.debug.profile.step_profile import Event, Recording, Step
from mindmodel.dryrun.memory_trace import PREFIXES
from mindmodel.errors import GraphError
from mindmodel.parallel.runtime import Runtime, peak_flops
from mindmodel.train.build import Built, build
from mindmodel.train.run import OpenedRun
from mindmodel.train.schedule import learning_rate
from mindmodel.train.state import hold_first

WARM_UP = 2
"""Steps before one is measured: the first compiles, and memory is first touched in the next."""
OTHER_VERSION = "Another MindSpore than 2.9? `mindmodel doctor` tells."
TIMES, MEMORY = "cpu_op_execute_timestamp_*.txt", "cpu_ms_memory_record_*.txt"

Times = tuple[int, int, int]
"""When a step began, when its batch was there and when it ended: ns of the system's clock."""


def record_steps(opened: OpenedRun, runtime: Runtime, num_steps: int) -> Recording:
    """Compile the training step and measure it on the run's own data, on the weights that the run begins with.

    Each profiled step follows one that is not.

    Args:
        num_steps: of either kind.

    Raises:
        GraphError: if MindSpore saved no graph of kernels, or its profiler told nothing.
    """
    work = _Steps(opened)
    with tempfile.TemporaryDirectory(prefix="mindmodel-profile-") as name:
        folder = Path(name)
        with saved_stages(folder), runtime.cache.compiling():
            work.make()
        graph, sources = kernels_saved_in(folder), read_stage_sources(folder, KERNELS)
        for _ in range(WARM_UP - 1):
            work.make()
        plain, profiled = _in_turns(work, num_steps, folder)
        steps = read_steps(folder, profiled)
    peak, peak_name = peak_flops(runtime)
    return Recording(
        graph=graph.of_those_that_ran({event.scope for event in steps[0].events}),
        sources=sources,
        steps=steps,
        plain_s=tuple((end - begin) / 1e9 for begin, _, end in plain),
        parameter_bytes=_parameter_bytes(work.built),
        process_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        peak_flops=peak,
        peak_name=peak_name,
    )


class _Steps:
    """A run's steps, one after another from the first."""

    def __init__(self, opened: OpenedRun):
        self.opened, self.recipe, self.done = opened, opened.recipe, 0
        self.built = build(opened.recipe)
        hold_first(self.built, opened.recipe, 0, opened.initial.weights if opened.initial else None)

    def make(self) -> Times:
        """The next one, as the training loop makes it."""
        recipe, count = self.recipe, self.recipe.sequences_per_step
        begin = time.time_ns()
        batch = self.opened.batches.batch(self.done * count, count, self.built.share, self.built.rows)
        read = time.time_ns()
        self.done += 1
        lr = learning_rate(recipe.optim, recipe.train.steps, min(self.done, recipe.train.steps))
        for output in self.built.run(batch, lr):
            output.asnumpy()
        return begin, read, time.time_ns()


def _in_turns(work: _Steps, num_steps: int, folder: Path) -> tuple[list[Times], list[Times]]:
    """Times of steps without and with the profiler, which writes into a folder."""
    plain, profiled = [], []
    with switched_off_profiler(folder) as profiler:
        for _ in range(num_steps):
            plain.append(work.make())
            profiler.step_profiling_enable(True)
            profiled.append(work.make())
            profiler.step_profiling_enable(False)
    return plain, profiled


@contextmanager
def switched_off_profiler(folder: Path) -> Iterator[Any]:
    """MindSpore's, not yet switched on; it writes its files at the end of the block."""
    profiler = _c_expression.Profiler.get_instance("CPU")
    profiler.init(str(folder))
    profiler.enable_op_time()
    profiler.enable_profile_memory()
    profiler.step_profiling_enable(False)
    try:
        yield profiler
    finally:
        profiler.stop()


def kernels_saved_in(folder: Path) -> KernelGraph:
    """The kernels that MindSpore chose, from what it saved while it compiled.

    Raises:
        GraphError: if it saved none.
    """
    texts = read_stages(folder)
    if KERNELS not in texts:
        raise GraphError(f"MindSpore saved no graph of its kernels. {OTHER_VERSION}")
    return read_kernels(texts[KERNELS])


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
        raise GraphError(f"MindSpore's profiler saw no kernels. {OTHER_VERSION}")
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


def _parameter_bytes(built: Built) -> dict[str, int]:
    """Of weights and of the optimizer's state."""
    found = {"weights": 0, "optimizer": 0}
    for parameter in {id(one): one for one in built.whole.get_parameters()}.values():
        kind = "optimizer" if parameter.name.startswith(tuple(PREFIXES)) else "weights"
        found[kind] += parameter.asnumpy().nbytes
    return found
