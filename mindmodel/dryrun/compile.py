"""Ranks compiled by MindSpore for simulated Ascend devices, in a process beside this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Optional, Sequence

import numpy as np

from safetensors.numpy import load_file
from mindmodel.dryrun import standin
from mindmodel.dryrun.graph import Graph
from mindmodel.dryrun.jobs import GRAPH_NAME, JOBS_NAME, LOG_NAME, RESULT_NAME, SLICES_NAME, Job, write_jobs
from mindmodel.dryrun.mindir import load_graph
from mindmodel.dryrun.translate import reason
from mindmodel.errors import LayoutError


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

    def slices(self) -> dict[str, np.ndarray]:
        """This rank's slices of fresh weights and optimizer state, by name (level 0)."""
        return load_file(self.folder / SLICES_NAME)


@contextmanager
def compiled(
    jobs: Sequence[Job], at_once: int, progress: Optional[Callable[[int, str], None]] = None
) -> Iterator[dict[str, Compiled]]:
    """Compile jobs, several at a time; the files are there until the block ends.

    Args:
        progress: called with the number of jobs done and the name of the last.

    Raises:
        LayoutError: if the compiler refuses a rank: which, why, and the operator.
        BuildError: if there is neither CANN nor a stand-in.
    """
    environment = {**os.environ, **_environment(), **standin.toolkit()}
    with tempfile.TemporaryDirectory(prefix="mindmodel-dryrun-") as name:
        folder = Path(name)
        for job in jobs:
            (folder / job.name).mkdir()
        write_jobs(folder / JOBS_NAME, jobs, at_once)
        _run_child(folder, environment, progress)
        yield {job.name: _result(job, folder / job.name) for job in jobs}


def _environment() -> dict[str, str]:
    """Errors of the compiler are logged: its exceptions do not give reasons."""
    return {"GLOG_v": "3", "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python", "OMP_NUM_THREADS": "1"}


def _run_child(folder: Path, environment: Mapping[str, str], progress: Optional[Callable[[int, str], None]]) -> None:
    """Start the child, follow its lines, and end it and its forks whatever happens."""
    command = [sys.executable, "-m", "mindmodel.dryrun.child", str(folder)]
    with open(folder / LOG_NAME, "wb") as log:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, env=dict(environment), text=True, start_new_session=True
        )
    assert child.stdout is not None
    try:
        for done, line in enumerate(child.stdout, 1):
            if progress is not None:
                progress(done, line.split()[0])
        if child.wait() != 0:
            last = (folder / LOG_NAME).read_text(errors="replace").strip().splitlines()[-1:]
            raise LayoutError(f"the process that compiles ended with code {child.returncode}: {' '.join(last)}")
    finally:
        if child.poll() is None:
            os.killpg(child.pid, 9)
            child.wait()
        child.stdout.close()


def _result(job: Job, folder: Path) -> Compiled:
    if not (folder / RESULT_NAME).is_file():
        raise LayoutError(f"rank {job.rank} of {job.num_ranks} does not compile: {reason(folder / LOG_NAME)}")
    return Compiled(job=job, folder=folder, result=json.loads((folder / RESULT_NAME).read_text()))
