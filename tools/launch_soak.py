"""Launch two CPU processes again and again, kill one of them at a random moment, and look for what is left behind.

usage: python tools/launch_soak.py 200
       python tools/launch_soak.py 8 --seed 3 --longest 15

Killed is a worker, the scheduler or the launcher, by SIGKILL or SIGTERM, or nobody; all launches go on with one run.
After each: has it ended as it should, in time; is a process left, a port, a lock, a temporary file? Exit code 1 on the
first leftover.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Iterator, Optional

RECIPE = """
model: {hidden_size: 32, num_layers: 1, num_heads: 4, num_kv_heads: 2, ffn_size: 64}
data: {source: corpus, tokenizer_vocab_size: 300, seq_len: 32, heldout: 0.1}
parallel: {dp: 2}
train: {steps: 1000000, tokens_per_step: 128}
optim: {peak_lr: 1e-3}
checkpoint: {every: 20}
runtime: {device: cpu, output: run}
"""
OWN_FILES = {"cache", "corpus", "recipe.yaml", "run", "temporary", "launch.log"}
SHORT_HOURS = 0.001
END_LIMIT_S = 60.0
"""For a launch to end once it should; one that takes longer hangs."""

GONE_LIMIT_S = 5.0
KILL, TERM = signal.SIGKILL, signal.SIGTERM
EXIT_CODES = {
    ("nobody", None): {0},
    ("worker", KILL): {3},
    ("worker", TERM): {3, 130},  # before the first step there is nothing to save
    ("scheduler", KILL): {3},
    ("scheduler", TERM): {3},
    ("launcher", KILL): {-9},
    ("launcher", TERM): {130, -TERM},  # before it has begun it has nothing to end
}
COLUMNS = "{:>5}  {:<10} {:<8} {:>7}  {:>4}  {:>6}  {}"


class Soak:
    """One run folder, launched many times.

    Args:
        folder: empty.
        longest_s: after which the victim is killed at the latest.
    """

    def __init__(self, folder: Path, draw: random.Random, longest_s: float) -> None:
        self.folder, self.draw, self.longest_s = folder, draw, longest_s
        (folder / "corpus").mkdir()
        words = "the a one two red blue dog cat runs sees over under tree house".split()
        for number in range(40):
            lines = (" ".join(draw.choice(words) for _ in range(9)) for _ in range(30))
            (folder / "corpus" / f"{number}.txt").write_text("\n".join(lines))
        (folder / "recipe.yaml").write_text(RECIPE)
        (folder / "temporary").mkdir()

    def round(self, number: int) -> tuple[str, list[str]]:
        """One launch; gives its line of the table and what it left behind."""
        victim, kind = self.draw.choice(list(EXIT_CODES))
        moment_s = 0.0 if victim == "nobody" else self.draw.uniform(0.3, self.longest_s)
        launcher = self._start(victim)
        end = time.monotonic() + moment_s
        while time.monotonic() < end and launcher.poll() is None:
            time.sleep(0.02)
        if kind is not None:
            self._kill(launcher, victim, kind)
        start, faults = time.monotonic(), []
        try:
            code: Optional[int] = launcher.wait(END_LIMIT_S + (END_LIMIT_S if victim == "nobody" else 0))
        except subprocess.TimeoutExpired:
            launcher.kill()
            code = None
            faults.append("hangs")
        seconds = time.monotonic() - start
        if code not in EXIT_CODES[victim, kind]:
            faults.append(f"exit code {code}")
        faults += self._leftovers(orderly=KILL != kind)
        name = kind.name if kind else "-"
        return COLUMNS.format(number, victim, name, f"{moment_s:.1f} s", str(code), f"{seconds:.1f} s",
                              "; ".join(faults) or "nothing left"), faults

    def _start(self, victim: str) -> subprocess.Popen:
        arguments = ["launch", "recipe.yaml", *([f"train.max_hours={SHORT_HOURS}"] if victim == "nobody" else [])]
        environment = {**os.environ, "MINDMODEL_CACHE": str(self.folder / "cache")}
        environment["TMPDIR"] = str(self.folder / "temporary")
        with open(self.folder / "launch.log", "wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "mindmodel", *arguments],
                cwd=self.folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )

    def _kill(self, launcher: subprocess.Popen, victim: str, kind: signal.Signals) -> None:
        """The victim, as soon as it is there."""
        while launcher.poll() is None:
            pids = [launcher.pid] if victim == "launcher" else self._launched(victim)
            if pids:
                with suppress(ProcessLookupError):
                    os.kill(self.draw.choice(pids), kind)
                return
            time.sleep(0.02)

    def _launched(self, victim: str = "") -> list[int]:
        """Living processes of this run: all, or those of a role."""
        role = {"worker": b"MS_ROLE=MS_WORKER", "scheduler": b"MS_ROLE=MS_SCHED"}.get(victim, b"")
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                environment = (path / "environ").read_bytes().split(b"\0")
                ours = f"MINDMODEL_HEARTBEATS={self.folder / 'run' / 'logs'}".encode() in environment
                if ours and (not role or role in environment) and b") Z " not in (path / "stat").read_bytes():
                    found.append(int(path.name))
        return sorted(found)

    def _leftovers(self, orderly: bool) -> list[str]:
        """What should not be there, nor go away within a moment: a process that is killed takes one to close its files.

        A checkpoint that a killed rank was writing is removed by the next launch.
        """
        end = time.monotonic() + GONE_LIMIT_S
        while (found := list(self._found(orderly))) and time.monotonic() < end:
            time.sleep(0.05)
        return found

    def _found(self, orderly: bool) -> Iterator[str]:
        yield from (f"process {pid}" for pid in self._launched())
        yield from (f"port {port}" for port in self._ports() if not _is_free(port))
        yield from (f"lock {path.name}" for path in self.folder.glob("run/**/*.lock") if not _can_be_locked(path))
        yield from (f"file {path.name}" for path in self.folder.iterdir() if path.name not in OWN_FILES)
        yield from (f"temporary {path.name}" for path in (self.folder / "temporary").iterdir())
        if orderly:
            yield from (f"temporary {path.name}" for path in self.folder.glob("run/**/.*.tmp"))

    def _ports(self) -> list[int]:
        """That the launch has chosen."""
        return list(map(int, re.findall(r"meeting at 127\.0\.0\.1:(\d+)", (self.folder / "launch.log").read_text())))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections do not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _can_be_locked(path: Path) -> bool:
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=30.0, metavar="S", help="latest moment of a kill (default 30)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="launch-soak-") as name:
        soak = Soak(Path(name), random.Random(args.seed), args.longest)
        print(COLUMNS.format("round", "killed", "by", "after", "code", "ended", "left behind"), flush=True)
        for number in range(1, args.rounds + 1):
            line, faults = soak.round(number)
            print(line, flush=True)
            if faults:
                print((soak.folder / "launch.log").read_text()[-3000:])
                return 1
    print(f"{args.rounds} launches, nothing left behind")
    return 0


if __name__ == "__main__":
    sys.exit(main())
