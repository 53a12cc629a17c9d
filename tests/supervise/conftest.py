"""Launched runs without MindSpore: a small msrun, and workers that each test writes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from command import ROOT

MSRUN = """
import argparse, os, subprocess, sys, time
parser = argparse.ArgumentParser()
for name in ("worker_num", "local_worker_num", "node_rank"):
    parser.add_argument(f"--{name}", type=int)
parser.add_argument("--log_dir")
parser.add_argument("--no-scheduler", action="store_true")
parser.add_argument("--linger", type=float, default=0)
parser.add_argument("task", nargs=argparse.REMAINDER)
args = parser.parse_args()
os.environ["MS_WORKER_NUM"] = str(args.worker_num)
started = []

def start(log, role, rank, **options):
    environment = {**os.environ, "MS_ROLE": role, "MS_NODE_ID": str(rank)}
    with open(f"{args.log_dir}/{log}", "w") as out:
        started.append(subprocess.Popen(args.task, stdout=out, stderr=subprocess.STDOUT, env=environment, **options))

print("starting", args.task, flush=True)
if args.task == ["broken"]:
    sys.exit("msrun: no such thing")
if not args.no_scheduler:
    start("scheduler.log", "MS_SCHED", 0)
for k in range(args.local_worker_num):
    rank = args.node_rank * args.local_worker_num + k
    start(f"worker_{rank}.log", "MS_WORKER", rank, preexec_fn=os.setsid)
time.sleep(args.linger)
"""

WORKER = """
import os, signal, subprocess, sys, time
from mindmodel.errors import *
from mindmodel.parallel.environment import place
from mindmodel.parallel.heartbeat import attach_to_launcher, heartbeat_of_this_process
from mindmodel.parallel.rank_error import report_error

here = place()
rank = here.rank
attach_to_launcher()
if here.is_scheduler:
    time.sleep(SCHEDULER_S)
    sys.exit()
beat = heartbeat_of_this_process().beat
beat("starting", 0)

def fail(error, code):
    report_error(error)
    sys.exit(code)

def forever():
    while True:
        time.sleep(0.05)

def saves_on_a_signal(seconds=0.2):
    def save(*_):
        beat("saving", 1)
        time.sleep(seconds)
        print("saved", flush=True)
        os._exit(130)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, save)

"""

DRIVER = """
import json, sys
from pathlib import Path
from mindmodel.errors import MindModelError
from mindmodel.parallel.heartbeat import HEARTBEATS
from mindmodel.parallel.launch import Launch
from mindmodel.parallel.nodes import Nodes
from mindmodel.recipe.load import recipe_from_dict
from mindmodel.supervise import link, peers
from mindmodel.supervise.workers import run_launch
from mindmodel.terminal import Terminal

spec = json.loads(sys.argv[1])
logs = Path(spec["run"]) / "logs"
launch = Launch(
    recipe=recipe_from_dict(spec["recipe"], "test"), nodes=Nodes(**spec["nodes"]), workers=spec["workers"],
    command=tuple(spec["command"]), environment={HEARTBEATS: str(logs)}, logs=logs,
)
link.SILENCE_S, peers.ALIVE_S = spec["silence_s"], min(2, spec["silence_s"] / 4)
try:
    limits = {name: spec[name] for name in ("timeout_s", "hang_limit_s")}
    outcome = run_launch(launch, Terminal(), **limits, prepare=lambda: None)
except MindModelError as error:
    sys.exit(print(f"{type(error).__name__}: {error}", file=sys.stderr) or 2)
except KeyboardInterrupt:
    sys.exit(130)
if outcome.failure:
    print(outcome.failure.describe(), file=sys.stderr)
sys.exit(outcome.code)
"""

RECIPE = {
    "name": "tests",
    "model": {"hidden_size": 8, "num_layers": 1, "num_heads": 1, "ffn_size": 8, "vocab_size": 300},
    "data": {"source": "stdlib", "seq_len": 8},
    "train": {"steps": 1, "tokens_per_step": 64},
}


def launched_processes(folder: Path) -> list[int]:
    """Living processes that were launched to log into a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environment, status = (path / "environ").read_bytes(), (path / "stat").read_text()
        except OSError:
            continue
        if f"MINDMODEL_HEARTBEATS={folder}/".encode() in environment and status.rpartition(")")[2].split()[0] != "Z":
            found.append(int(path.name))
    return found


class Node:
    """A launcher that runs."""

    def __init__(self, process: subprocess.Popen, run: Path) -> None:
        self.process, self.run, self.logs = process, run, run / "logs"

    def wait_for(self, text: str, rank: int = 0) -> None:
        """Until the log of a rank holds the text."""
        end, log = time.monotonic() + 20, self.logs / f"worker_{rank}.log"
        while not log.exists() or text not in log.read_text():
            assert self.process.poll() is None and time.monotonic() < end, f"never said {text!r}"
            time.sleep(0.02)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, timeout_s: float = 30) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        out, err = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, out, err

    def pids(self) -> list[int]:
        return launched_processes(self.run)

    def workers(self) -> list[int]:
        """Ids of the workers that live, in the order of their start."""
        role = b"MS_ROLE=MS_WORKER"
        return sorted(pid for pid in self.pids() if role in Path(f"/proc/{pid}/environ").read_bytes())

    def all_gone(self) -> bool:
        """Whether no process is left, after a moment."""
        end = time.monotonic() + 3
        while self.pids() and time.monotonic() < end:
            time.sleep(0.02)
        return self.pids() == []

    def pid_of(self, rank: int) -> int:
        """From its sign of life."""
        return int((self.logs / f"rank_{rank}.heartbeat").read_text().split()[3])


class Job:
    """Starts launchers whose workers run the test's own lines."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.nodes, self.temporary = folder, [], folder / "temporary"
        self.temporary.mkdir()
        (folder / "msrun.py").write_text(MSRUN)
        (folder / "driver.py").write_text(DRIVER)

    def start(
        self, worker: str, *, workers: int = 2, nodes: int = 1, node: int = 0, port: int = 9999, timeout_s: float = 20,
        hang_limit_s: float = 600, scheduler_s: float = 0.3, run: str = "run", msrun_options: tuple[str, ...] = (),
        recipe: dict = {}, task: tuple[str, ...] = (), silence_s: float = 60,
    ) -> Node:
        program, path = self.folder / f"worker_{node}.py", self.folder / run
        program.write_text(f"SCHEDULER_S = {scheduler_s}\n{WORKER}\n{textwrap.dedent(worker)}")
        here = workers // nodes
        numbers = {"worker_num": workers, "local_worker_num": here, "node_rank": node, "log_dir": path / "logs"}
        options = [*(f"--{name}={value}" for name, value in numbers.items()), *msrun_options]
        command = [sys.executable, self.folder / "msrun.py", *options, *(task or (sys.executable, program))]
        spec = {
            "run": str(path), "recipe": {**RECIPE, **recipe}, "workers": workers, "command": list(map(str, command)),
            "nodes": {"count": nodes, "rank": node, "master": "127.0.0.1", "port": port},
            "timeout_s": timeout_s, "hang_limit_s": hang_limit_s, "silence_s": silence_s,
        }
        process = subprocess.Popen(
            [sys.executable, self.folder / "driver.py", json.dumps(spec)], cwd=self.folder, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )
        self.nodes.append(Node(process, path))
        return self.nodes[-1]

    def __call__(self, worker: str, **options) -> tuple[int, str, str]:
        """Start one launcher and wait for it."""
        return self.start(worker, **options).end()


@pytest.fixture
def job(tmp_path):
    """No process may be left of it when its launchers have ended."""
    job = Job(tmp_path)
    yield job
    for node in job.nodes:
        if node.process.poll() is None:
            node.process.kill()
            node.process.communicate()
    end = time.monotonic() + 3
    while launched_processes(tmp_path) and time.monotonic() < end:
        time.sleep(0.05)
    assert launched_processes(tmp_path) == []


@pytest.fixture
def free_port() -> int:
    """A port that is free, and the next one too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
