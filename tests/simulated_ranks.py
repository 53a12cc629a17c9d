"""Jobs on simulated Ascend devices: every rank is a fork that runs `mindmodel`, and all of them run at the same time.

Kernels do nothing, so what a step computes is zero. Two things are stood in for: that devices are there, and what ranks
tell one another. Started by `simulated` with the environment of a dry run; the argument is a file of jobs.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Sequence

import numpy as np

PATIENCE_S = 200


class Talk:
    """What the ranks of a job tell one another, in memory that all of them see."""

    def __init__(self, count: int, width: int):
        self.count, self.width = count, width
        self.barrier = multiprocessing.Barrier(count)
        self.table = np.frombuffer(multiprocessing.RawArray("d", count * width)).reshape(count, width)

    def gather(self, rank: int, values: Sequence[float]) -> np.ndarray:
        """As Ranks.gather."""
        self.table[rank, : len(values)] = values
        self.barrier.wait(PATIENCE_S)
        found = self.table[:, : len(values)].copy()
        self.barrier.wait(PATIENCE_S)
        return found


def run_rank(rank: int, talk: Talk, arguments: Sequence[str], idle: bool) -> int:
    """`mindmodel` as one rank; gives its exit code.

    Args:
        idle: a step and an evaluation do nothing, so that the weights stay what they were.
    """
    os.environ.update(RANK_SIZE=str(talk.count), RANK_ID=str(rank))
    from mindmodel.cli import train
    from mindmodel.cli.main import main
    from mindmodel.parallel import graph_cache, ranks, runtime
    from mindmodel.parallel.environment import Place
    from mindmodel.train.loop import Training

    here = Place(rank=rank, num_ranks=talk.count)
    for module in (train, runtime, graph_cache):
        module.place = lambda: here
    runtime.ascend_devices = lambda: talk.count
    ranks.Ranks.gather = lambda self, *values: talk.gather(rank, values)
    if idle:
        Training.one_step = _idle_step
        Training.evaluate = lambda self, metrics: None
    return main(list(arguments))


def _idle_step(training) -> tuple[float, float, float]:
    training.step += 1
    return 0.0, 0.0, 0.0


def _start(rank: int, talk: Talk, job: dict, log: Path) -> int:
    process = os.fork()
    if process:
        return process
    code = 99
    try:
        with open(log, "w") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        code = run_rank(rank, talk, job["arguments"], job["idle"])
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        if code:
            talk.barrier.abort()
        sys.stderr.flush()
        os._exit(code)


def main(path: Path) -> None:
    """Job after job; a list of the ranks' exit codes for each on standard output."""
    import mindspore  # noqa: F401  once, before the forks

    from mindmodel.parallel.ranks import WIDTH

    for number, job in enumerate(json.loads(path.read_text())):
        talk = Talk(job["ranks"], 8 * WIDTH)
        logs = [path.with_name(f"job{number}_rank{rank}.log") for rank in range(job["ranks"])]
        ranks = {_start(rank, talk, job, log): rank for rank, log in enumerate(logs)}
        codes = [0] * len(ranks)
        while ranks:
            process, status = os.wait()
            codes[ranks.pop(process)] = os.waitstatus_to_exitcode(status)
        print("CODES", json.dumps(codes), flush=True)


def simulated(folder: Path, jobs: Sequence[dict], level: int) -> list[list[str]]:
    """Run jobs in a folder; gives what each rank of each printed.

    Args:
        jobs: `ranks`, `arguments` of mindmodel, and whether it is `idle`.
        level: MindSpore's MS_SIMULATION_LEVEL: 0 compiles graphs, 1 chooses kernels and plays steps too.
    """
    from mindmodel.dryrun.compile import environment

    variables = {**os.environ, **environment(0), "MS_SIMULATION_LEVEL": str(level)}
    variables["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), variables["PYTHONPATH"]])
    logs = folder / "logs"
    logs.mkdir()
    (logs / "jobs.json").write_text(json.dumps([{"idle": False, **job} for job in jobs]))
    done = subprocess.run(
        [sys.executable, __file__, logs / "jobs.json"], cwd=folder, env=variables, capture_output=True, text=True,
        timeout=PATIENCE_S * len(jobs),
    )
    codes = [json.loads(line.removeprefix("CODES ")) for line in done.stdout.splitlines() if line.startswith("CODES ")]
    printed = [
        [(logs / f"job{number}_rank{rank}.log").read_text() for rank in range(job["ranks"])]
        for number, job in enumerate(jobs)
    ]
    assert len(codes) == len(jobs), done.stderr
    assert not any(map(any, codes)), "\n".join(text for job, texts in zip(codes, printed) if any(job) for text in texts)
    return printed


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
