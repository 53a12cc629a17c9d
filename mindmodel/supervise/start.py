"""From a planned launch to running processes: the folder of their logs, msrun, and which process is which rank."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from typing import Iterator, Optional

from mindmodel.checkpoint.run_folder import RunFolder
from mindmodel.errors import LaunchError
from mindmodel.parallel.heartbeat import LAUNCHER
from mindmodel.parallel.launch import Launch
from mindmodel.supervise.failures import last_lines, log_tail
from mindmodel.supervise.link import Waiting
from mindmodel.supervise.processes import Exit, Processes, environment_of

POLL_S = 0.05

Rank = Optional[int]
"""Of a worker; None is the scheduler."""


@contextmanager
def own_logs(launch: Launch) -> Iterator[None]:
    """Make the folder of the logs and be the only launcher of this node that writes there.

    The logs of the launch before are kept under another name, and its signs of life removed.

    Raises:
        CheckpointError: if a training writes to the run.
        LaunchError: if the folder cannot be written, or another launcher writes there.
    """
    path = launch.logs / f"launch_{launch.nodes.rank}.lock"
    try:
        launch.logs.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")
    except OSError as error:
        raise LaunchError(
            f"{launch.logs}: the logs cannot be written: {error.strerror}. Choose another runtime.output."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LaunchError(
                f"{launch.logs.parent}: is being launched by another process on this node. Wait until it ends, stop "
                "it, or choose another runtime.output."
            ) from error
        if launch.nodes.rank == 0:
            folder = RunFolder(launch.logs.parent)
            folder.create()
            with folder.lock():
                pass  # a training of one process would be in the way
        _put_aside(launch)
        yield


def _put_aside(launch: Launch) -> None:
    for rank in (None, *launch.ranks) if launch.nodes.rank == 0 else launch.ranks:
        log = launch.log_of(rank)
        if log.exists():
            os.replace(log, log.with_suffix(".before.log"))
    for rank in launch.ranks:
        launch.heartbeat_of(rank).unlink(missing_ok=True)


def start_workers(launch: Launch, processes: Processes, timeout_s: float, waiting: Waiting) -> dict[Rank, int]:
    """Run msrun, which starts the scheduler and the workers and leaves them to us; gives their process ids.

    A process that ended while msrun still ran has an exit in `processes`, and an id below 0 if nobody has seen it. One
    that attaches to its launcher does not end by itself before.

    Raises:
        LaunchError: if msrun fails, or takes longer than `timeout_s`.
    """
    log = launch.logs / f"msrun_{launch.nodes.rank}.log"
    environment = {**os.environ, **launch.environment, LAUNCHER: str(os.getpid())}
    msrun = processes.start(launch.command, environment, log)
    found: dict[Rank, int] = {}
    end = time.monotonic() + timeout_s
    while msrun not in processes.exits:
        if time.monotonic() > end:
            raise LaunchError(
                f"msrun has not started the processes within {timeout_s:.0f} s. Use a longer --timeout where files are "
                f"slow. Its log: {log}"
            )
        waiting("starting the processes")
        time.sleep(POLL_S)
        _recognise(processes.children(of=msrun), found)
        processes.reap()
    if processes.exits[msrun].code != 0:
        lines = "\n".join(f"  {line}" for line in last_lines(log_tail(log)))
        raise LaunchError(f"msrun could not start the processes:\n{lines}\nIts log: {log}")
    alive = processes.children()
    processes.reap()
    _recognise(alive, found)
    _end_second_scheduler(launch, processes, found)
    _note_the_lost(launch, processes, found, alive)
    if launch.nodes.rank == 0 and found[None] < 0 and not launch.log_of(None).exists():
        raise LaunchError(
            f"--master: msrun started no scheduler, since '{launch.nodes.master}' is no address of this machine's "
            "network interfaces. Give the address that the other nodes reach this one by."
        )
    return found


def _recognise(pids: list[int], found: dict[Rank, int]) -> None:
    """By what msrun has put into the environment of each; what they start themselves has the same, and comes later."""
    for pid in pids:
        environment = environment_of(pid)
        if environment.get("MS_ROLE") == "MS_SCHED":
            found.setdefault(None, pid)
        elif environment.get("MS_ROLE") == "MS_WORKER":
            found.setdefault(int(environment["MS_NODE_ID"]), pid)


def _end_second_scheduler(launch: Launch, processes: Processes, found: dict[Rank, int]) -> None:
    """msrun starts one wherever the master's address is: with several nodes on one machine, on each."""
    second = found.pop(None, None) if launch.nodes.rank else None
    if second is not None:
        processes.end([second])


def _note_the_lost(launch: Launch, processes: Processes, found: dict[Rank, int], alive: list[int]) -> None:
    """Processes that ended while msrun was their parent, which has taken their exit codes along."""
    now_s = time.time()
    for number, rank in enumerate([*launch.ranks, *([None] if launch.nodes.rank == 0 else [])], 1):
        pid = found.setdefault(rank, -number)
        if pid not in alive and pid not in processes.exits:
            processes.exits[pid] = Exit(code=None, time_s=now_s)
