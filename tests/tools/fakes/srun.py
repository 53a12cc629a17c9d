"""Stands in for `srun`: a task for each node of the job, signals passed on to all, the largest exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys


def main() -> int:
    arguments = sys.argv[1:]
    while arguments[0].startswith("--"):
        arguments = arguments[1:]
    tasks = []
    for number, host in enumerate(os.environ["SLURM_JOB_NODELIST"].split(",")):
        environment = {**os.environ, "SLURM_NODEID": str(number), "FAKE_ADDRESS": host}
        tasks.append(subprocess.Popen(arguments, env=environment, start_new_session=True))
    for name in (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda number, _: [task.send_signal(number) for task in tasks])
    return max(task.wait() for task in tasks)


if __name__ == "__main__":
    sys.exit(main())
