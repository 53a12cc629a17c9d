"""Runs training steps under MindSpore's profiler on the CPU.

The profiler is used without its Python front, which adds tens of milliseconds to a step and writes folders into the
working one: it is switched on and off around single steps, and its files lie in a temporary folder.
"""

from __future__ import annotations

import resource
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

from mindspore import _c_expression

from mindmodel.debug.graph.stages import KERNELS, read_stage_sources, read_stages, saved_stages
from mindmodel.debug.profile.kernel_graph import read_kernels
from mindmodel.debug.profile.recording import Recording, Times, read_steps
from mindmodel.dryrun.memory_trace import PREFIXES
from mindmodel.parallel.runtime import peak_flops
from mindmodel.train.build import Built
from mindmodel.train.stepping import Stepping


def record_steps(stepping: Stepping, num_steps: int) -> Recording:
    """Compile a run's training step and measure it on the run's own data.

    Each profiled step follows one that is not.

    Args:
        num_steps: of either kind.

    Raises:
        GraphError: if MindSpore saved no graph of its kernels, or its profiler saw nothing.
    """
    work = _Steps(stepping)
    with tempfile.TemporaryDirectory(prefix="mindmodel-profile-") as name:
        folder = Path(name)
        with saved_stages(folder), stepping.runtime.cache.compiling():
            work.make()
        graph, sources = read_kernels(read_stages(folder).get(KERNELS, "")), read_stage_sources(folder, KERNELS)
        work.make()  # touches memory for the first time
        plain, profiled = _in_turns(work, num_steps, folder)
        steps = read_steps(folder, profiled)
    peak, peak_name = peak_flops(stepping.runtime)
    return Recording(
        graph=graph.of_those_that_ran({event.scope for event in steps[0].events}),
        sources=sources,
        steps=steps,
        plain_s=tuple((end - begin) / 1e9 for begin, _, end in plain),
        parameter_bytes=_parameter_bytes(stepping.built),
        process_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        peak_flops=peak,
        peak_name=peak_name,
    )


class _Steps:
    """A run's steps, one after another from the first, also beyond its last."""

    def __init__(self, stepping: Stepping):
        self.stepping, self.done = stepping, 0

    def make(self) -> Times:
        """The next one, as the training loop makes it."""
        stepping = self.stepping
        begin = time.time_ns()
        batch = stepping.batch_of(self.done + 1)
        read = time.time_ns()
        self.done += 1
        lr = stepping.learning_rate_of(min(self.done, stepping.recipe.train.steps))
        for output in stepping.built.run(batch, lr):
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


def _parameter_bytes(built: Built) -> dict[str, int]:
    """Of weights and of the optimizer's state."""
    found = {"weights": 0, "optimizer": 0}
    for parameter in {id(one): one for one in built.whole.get_parameters()}.values():
        kind = "optimizer" if parameter.name.startswith(tuple(PREFIXES)) else "weights"
        found[kind] += parameter.asnumpy().nbytes
    return found
