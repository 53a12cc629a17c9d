"""The process that compiles: MindSpore is loaded once, then every rank is compiled in a fork of its own.

A second compile in one process gives wrong graphs, so a fork compiles one rank and ends. Started by compile.py with the
toolkit's environment; the argument is the folder that holds jobs.json.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import resource
import signal
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any, Callable

import numpy as np
from safetensors.numpy import save_file

from mindmodel.dryrun.jobs import (
    FORWARD_NAME,
    GRAPH_NAME,
    JOBS_NAME,
    LOG_NAME,
    RESULT_NAME,
    SLICES_NAME,
    Job,
    read_jobs,
)

PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def main(folder: Path) -> None:
    """Compile all jobs, several at a time; a line `NAME CODE` on standard output as each ends."""
    end_with_parent()
    import mindspore  # noqa: F401  once, before the forks

    jobs, at_once = read_jobs(folder / JOBS_NAME)
    running: dict[int, str] = {}
    waiting = list(jobs)
    while waiting or running:
        while waiting and len(running) < at_once:
            job = waiting.pop(0)
            running[_forked(partial(_compile, job, folder / job.name), folder / job.name)] = job.name
        process, status = os.wait()
        print(running.pop(process), os.waitstatus_to_exitcode(status), flush=True)


def end_with_parent() -> None:
    """Have the kernel end this process when the one that started it is gone, however that came about."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _forked(work: Callable[[], None], folder: Path) -> int:
    """Start a fork that does the work, its output in the folder's log; gives its process id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        end_with_parent()
        log = os.open(folder / LOG_NAME, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        atexit._run_exitfuncs()  # MindSpore writes its reports
        os._exit(code)


def _compile(job: Job, folder: Path) -> None:
    began = time.monotonic()
    os.chdir(folder)  # MindSpore writes rank_N/ into the working folder
    os.environ.update(RANK_SIZE=str(job.num_ranks), RANK_ID=str(job.rank))
    import mindspore as ms
    from mindspore.communication import init
    from mindspore.graph._parse import compile_config

    if not job.weights:
        compile_config.COMPILE_PROFILE = "1"  # read once
    ms.set_context(mode=ms.GRAPH_MODE, jit_config={"jit_level": "O0"})
    ms.set_device("Ascend")
    ms.set_recursion_limit(20000)
    init()
    work = _run if job.level else _graph_and_slices if job.weights else _graph
    result = work(job)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    result["seconds"] = time.monotonic() - began
    result["cpu_s"] = usage.ru_utime + usage.ru_stime
    result["host_bytes"] = usage.ru_maxrss * 1024
    Path(RESULT_NAME).write_text(json.dumps(result))


def _inputs(job: Job) -> list[Any]:
    """What the step is given: a global batch, and on one device the learning rate."""
    import mindspore as ms

    shape = job.recipe.padded_sequences, job.recipe.data.seq_len
    ids = ms.Tensor(np.zeros(shape, np.int32))
    return [ids, ids, ms.Tensor(0.0, ms.float32)] if job.num_ranks == 1 else [ids, ids]


def _graph_and_slices(job: Job) -> dict[str, Any]:
    """Write the partitioned graph before any kernel is chosen, and this rank's slices of fresh weights."""
    from mindmodel.models.decoder import initialize
    from mindmodel.train.build import build

    recipe = job.recipe
    built = build(recipe, job.rank)
    initialize(built.decoder, recipe.model, recipe.train.seed)
    _write_graph(built.whole, _inputs(job))
    if job.forward:
        ids = built.example(recipe)[0][: built.rows // recipe.parallel.micro_batches]
        _write_graph(built.forward_pass(recipe), [ids, ids], "eval", FORWARD_NAME)
    parameters = list(built.step.get_parameters())
    save_file({p.name: np.asarray(p.asnumpy(), order="C") for p in parameters}, SLICES_NAME)
    layouts = built.whole.parameter_layout_dict or {}
    return {"layouts": {name: [list(layout[0]), list(layout[1])] for name, layout in layouts.items()}}


def _graph(job: Job) -> dict[str, Any]:
    """Write the partitioned graph alone, with the seconds of its phases in the log; weights take no memory."""
    from mindmodel.train.build import build_without_numbers

    built = build_without_numbers(job.recipe, job.rank)
    _write_graph(built.whole, _inputs(job))
    return {}


def _write_graph(whole: Any, inputs: list[Any], phase: str = "train", name: str = GRAPH_NAME) -> None:
    from mindspore.common.api import _cell_graph_executor

    key, _ = _cell_graph_executor.compile(whole, *inputs, phase=phase, do_convert=False)
    Path(name).write_bytes(_cell_graph_executor._get_func_graph_proto(whole, key, "mind_ir"))


def _run(job: Job) -> dict[str, Any]:
    """Compile with kernels and let MindSpore play one step: the peak of its memory."""
    import mindspore as ms
    from mindspore.graph._parse import compile_config

    from mindmodel.train.build import build_without_numbers

    compile_config.COMPILE_DEBUG_MODE = "release"  # nodes without lines of Python: 10 percent less memory
    built = build_without_numbers(job.recipe, job.rank)
    for output in built.whole(*_inputs(job)):
        output.asnumpy()
    return {"peak_bytes": ms.runtime.max_memory_allocated()}


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
