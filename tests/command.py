"""The command as a user starts it: in a process of its own, in a folder of its own, on a very small recipe."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pty
import random
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]

RECIPE = """
model: {hidden_size: 32, num_layers: 1, num_heads: 4, num_kv_heads: 2, ffn_size: 64}
data: {source: corpus, tokenizer_vocab_size: 300, seq_len: 32, heldout: 0.1}
train: {steps: 200, tokens_per_step: 128}
optim: {peak_lr: 1e-2, warmup_steps: 4}
checkpoint: {every: 25, keep: 9}
log: {every: 1}
"""
DEMO = """\
model: {family: llama, hidden_size: 64, num_layers: 2, num_heads: 4, ffn_size: 160, vocab_size: 512}
data: {source: stdlib, tokenizer_vocab_size: 512, seq_len: 4}
train: {steps: 100, tokens_per_step: 8}
optim: {peak_lr: 0.125, schedule: constant}
"""
"""A recipe for commands whose computing is replaced: two sequences of four tokens, as made_trace has them."""
WORDS = "the a one two red blue dog cat runs sees over under tree house".split()


class Run:
    """A run's folder, to be looked at."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def rows(self) -> list[dict]:
        """What metrics.jsonl says."""
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    @property
    def losses(self) -> dict[int, tuple]:
        """Loss, gradient norm and learning rate by step; every step stands there once, in order."""
        found = [(row["step"], (row["loss"], row["grad_norm"], row["lr"])) for row in self.rows if "loss" in row]
        assert [step for step, _ in found] == sorted(dict(found))
        return dict(found)

    @property
    def steps(self) -> list[int]:
        """Steps of its checkpoints."""
        names = [path.name for path in (self.path / "checkpoints").iterdir()]
        return sorted(int(name.removeprefix("step_")) for name in names if not name.startswith("."))

    def checkpoint(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step_{step}"

    def tensors(self, step: int) -> dict[str, str]:
        """Checksums of a checkpoint's tensor files."""
        files = sorted(self.checkpoint(step).glob("*.safetensors"))
        assert [file.name for file in files] == ["optimizer.safetensors", "weights.safetensors"]
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    def content(self) -> dict[str, object]:
        """Every file and folder in it except the lock: content, and when it was written."""
        paths = (path for path in sorted(self.path.rglob("*")) if path.name != ".lock")
        return {
            str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) if path.is_file() else 0
            for path in paths
        }

    def hidden(self) -> list[str]:
        """What a killed process may leave behind: temporary files and folders."""
        return [path.name for path in self.path.rglob(".*") if path.name != ".lock"]


class Running:
    """A command that runs, its output line by line in files."""

    def __init__(self, arguments, folder: Path, env, wrap=lambda *command: command):
        self.log = folder / f".{time.monotonic_ns()}.log"
        with open(self.log, "w") as out:
            self.process = subprocess.Popen(
                wrap(sys.executable, "-m", "mindmodel", *map(str, arguments)),
                cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait_for(self, text: str, timeout_s: float = 120) -> None:
        """Until the output holds the text."""
        end = time.monotonic() + timeout_s
        while text not in self.output:
            assert self.process.poll() is None and time.monotonic() < end, f"never said {text!r}: {self.output}"
            time.sleep(0.005)

    def end(self, number: signal.Signals, timeout_s: float = 60) -> int:
        """Send a signal; gives the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout_s)


class Session:
    """A command on a terminal of its own, and a person who answers each prompt of the debugger."""

    def __init__(self, command, arguments, answers):
        ours, its = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, *map(str, arguments)], cwd=command.folder, env={**command.env, "COLUMNS": "400"},
            stdin=its, stdout=its, stderr=its, start_new_session=True,
        )
        os.close(its)
        self.output = ""
        for answer in [*answers, None]:
            seen = len(self.output)
            while "(Pdb) " not in self.output[seen:] and self._read(ours):
                pass
            if answer is not None:
                os.write(ours, f"{answer}\n".encode())
        os.close(ours)
        self.code = self.process.wait(60)

    def _read(self, ours) -> bool:
        try:
            chunk = os.read(ours, 4096)
        except OSError:  # the last one at the other end has gone
            return False
        self.output += chunk.decode(errors="replace")
        return bool(chunk)


class Command:
    """Starts `mindmodel` in a folder that holds a corpus and recipe.yaml."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.env = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(self, name: str) -> Run:
        return Run(self.folder / name)

    def copy(self, name: str, target: Path) -> Run:
        """A copy of a run and of the recipe beside it."""
        shutil.copytree(self.folder / name, target)
        return Run(target)

    def start(self, *arguments) -> Running:
        return Running(arguments, self.folder, self.env)

    def __call__(self, *arguments, cwd=None, timeout_s=180, typed="", **env) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "mindmodel", *map(str, arguments)], input=typed,
            cwd=cwd or self.folder, env={**self.env, **env}, capture_output=True, text=True, timeout=timeout_s,
        )

    def train(self, output, *overrides, **kwargs) -> subprocess.CompletedProcess:
        return self("train", self.folder / "recipe.yaml", f"runtime.output={output}", *overrides, **kwargs)

    def refused(self, *arguments, code: int = 2, **kwargs) -> str:
        """The one message of a command that fails in an orderly way."""
        done = self(*arguments, **kwargs)
        assert done.returncode == code, done.stderr + done.stdout
        assert "Traceback" not in done.stderr and done.stderr.count("Error: ") == 1, done.stderr
        return done.stderr


def in_terminal(arguments, columns, **options) -> tuple[int, str]:
    """Exit code and output of a process that believes it writes to a terminal of so many columns."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    output = b""
    with subprocess.Popen(arguments, stdin=its, stdout=its, stderr=its, **options) as process:
        os.close(its)
        try:
            while chunk := os.read(ours, 1 << 16):
                output += chunk
        except OSError:  # the other end was closed
            pass
    os.close(ours)
    return process.returncode, output.decode()


def fill_with_corpus(folder: Path) -> None:
    """Forty texts of few words, and the recipe."""
    draw = random.Random(0)
    (folder / "corpus").mkdir(parents=True)
    for number in range(40):
        lines = (" ".join(draw.choice(WORDS) for _ in range(9)) for _ in range(30))
        (folder / "corpus" / f"{number:02}.txt").write_text("\n".join(lines))
    (folder / "recipe.yaml").write_text(RECIPE)
