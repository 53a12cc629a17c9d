"""Ranks compiled by MindSpore for simulated Ascend devices, in a process beside this one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Container, Iterator, Mapping, Optional, Sequence

import numpy as np
from safetensors.numpy import load_file

from mindmodel.dryrun import standin
from mindmodel.dryrun.graph import Graph
from mindmodel.dryrun.jobs import (
    FORWARD_NAME,
    GRAPH_NAME,
    JOBS_NAME,
    LOG_NAME,
    RESULT_NAME,
    SLICES_NAME,
    Job,
    write_jobs,
)
from mindmodel.dryrun.mindir import load_graph
from mindmodel.dryrun.translate import reason
from mindmodel.errors import LayoutError
from mindmodel.parallel.plans.decoder import decoder_plan

Progress = Callable[[int, str], None]
"""Called as each job ends, with the number of those that are done and the name of this one."""
FOLDER_PREFIX = "mindmodel-dryrun-"
"""Of temporary folders; the process id follows."""


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What the compiler made of a rank.

    Attributes:
        result: what the child wrote down: seconds, cpu_s, host_bytes; layouts (level 0); peak_bytes (level 1).
        folder: of the job, with MindSpore's own files.
    """

    job: Job
    folder: Path
    result: Mapping[str, Any]

    def graph(self) -> Graph:
        """The partitioned graph (level 0)."""
        return load_graph(self.folder / GRAPH_NAME)

    def forward_pass(self) -> Graph:
        """That of evaluation (level 0, of a job that says so)."""
        return load_graph(self.folder / FORWARD_NAME)

    def slices(self) -> dict[str, np.ndarray]:
        """This rank's slices of fresh weights and optimizer state, by name (level 0)."""
        return load_file(self.folder / SLICES_NAME)


@contextmanager
def compiled(
    jobs: Sequence[Job], at_once: int, progress: Optional[Progress] = None
) -> Iterator[dict[str, Compiled]]:
    """Compile jobs, several at a time; the files are there until the block ends.

    Args:
        jobs: all of one level.

    Raises:
        LayoutError: if the compiler refuses a rank: which, why, and the operator.
        BuildError: if there is neither CANN nor a stand-in.
    """
    variables = {**os.environ, **environment(jobs[0].level)}
    _remove_left_folders(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=f"{FOLDER_PREFIX}{os.getpid()}-") as name:
        folder = Path(name)
        for job in jobs:
            (folder / job.name).mkdir()
        write_jobs(folder / JOBS_NAME, jobs, at_once)
        codes = _run_child(folder, {job.name for job in jobs}, variables, progress)
        yield {job.name: _result(job, folder / job.name, codes[job.name]) for job in jobs}


def _remove_left_folders(parent: Path) -> None:
    """Remove the folders of this user's processes that were killed, and could not do so themselves."""
    for folder in parent.glob(f"{FOLDER_PREFIX}*-*"):
        process = folder.name.removeprefix(FOLDER_PREFIX).partition("-")[0]
        with suppress(FileNotFoundError):  # what another process removes meanwhile
            if process.isdigit() and folder.lstat().st_uid == os.getuid() and not Path("/proc", process).exists():
                shutil.rmtree(folder, ignore_errors=True)


def environment(level: int) -> dict[str, str]:
    """Variables with which MindSpore compiles for a simulated Ascend device, read while it is loaded, before the forks.

    Errors of the compiler are logged: its exceptions do not give reasons. For the report of a step also the kernels
    that are chosen, and a record of memory.

    Raises:
        BuildError: if there is neither CANN nor a stand-in.
    """
    common = {
        "GLOG_v": "3",
        "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python",
        "OMP_NUM_THREADS": "1",
        "MS_SIMULATION_LEVEL": str(level),
    }
    report = {"MS_SUBMODULE_LOG_v": "{DEVICE:1}", "MS_ALLOC_CONF": "memory_tracker:True"}
    return {**common, **(report if level else {}), **standin.toolkit()}


def _run_child(
    folder: Path, jobs: Container[str], environment: Mapping[str, str], progress: Optional[Progress]
) -> dict[str, int]:
    """Start the child, follow its lines, and end it and its forks whatever happens; gives the code of each job."""
    command = [sys.executable, "-m", "mindmodel.dryrun.child", str(folder)]
    with open(folder / LOG_NAME, "wb") as log:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, env=dict(environment), text=True, start_new_session=True
        )
    assert child.stdout is not None
    codes: dict[str, int] = {}
    try:
        for line in child.stdout:
            name, _, code = line.rstrip().rpartition(" ")
            if name not in jobs:
                continue  # MindSpore's own words
            codes[name] = int(code)
            if progress is not None:
                progress(len(codes), name)
        if child.wait() != 0:
            raise LayoutError(_of_code(child.returncode, "the process that compiles", folder / LOG_NAME))
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        child.stdout.close()
    return codes


def _result(job: Job, folder: Path, code: int) -> Compiled:
    if code < 0:
        raise LayoutError(_of_code(code, f"rank {job.rank} of {job.num_ranks}: its compilation", folder / LOG_NAME))
    if code > 0:
        plan = decoder_plan(job.recipe.model, job.recipe.parallel)
        raise LayoutError(f"rank {job.rank} of {job.num_ranks} does not compile: {reason(folder / LOG_NAME, plan)}")
    return Compiled(job=job, folder=folder, result=json.loads((folder / RESULT_NAME).read_text()))


def _of_code(code: int, what: str, log: Path) -> str:
    """What a process died of."""
    if code == -signal.SIGKILL:
        return f"{what} was killed, most likely because this machine's memory ran out. Free memory, or use --jobs 1."
    if code < 0:
        return f"{what} was ended by signal {-code} ({signal.Signals(-code).name}): {reason(log)}"
    last = log.read_text(errors="replace").strip().splitlines()[-1:]
    return f"{what} ended with code {code}: {' '.join(last)}"
