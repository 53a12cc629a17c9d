"""Child: mindmodel's training steps under MindSpore's profiler, switched on for each as `debug profile` does it."""

from __future__ import annotations

import atexit
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench import mindmodel_step
from bench.child import Work, serve


def load(spec: dict):
    """Spec: as of mindmodel_step."""
    build_step = mindmodel_step.load(spec)
    from mindmodel.debug.profile.recorder import switched_off_profiler

    def build() -> Work:
        step, until_exit = build_step(), ExitStack()
        atexit.register(until_exit.close)
        folder = until_exit.enter_context(tempfile.TemporaryDirectory(prefix="bench-profile-"))
        profiler = until_exit.enter_context(switched_off_profiler(Path(folder)))

        def work(index: int) -> float:
            profiler.step_profiling_enable(True)
            loss = step(index)
            profiler.step_profiling_enable(False)
            return loss

        return work

    return build


if __name__ == "__main__":
    serve(load)
