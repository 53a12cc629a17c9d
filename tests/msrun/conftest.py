"""Jobs of several processes, started for real on this machine's CPU."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from command import Command, fill_with_corpus


class Job(Command):
    """`mindmodel launch` in a folder with a corpus and recipe.yaml; every worker has one thread."""

    def arguments(self, output, dp: int, *more) -> tuple:
        recipe = self.folder / "recipe.yaml"
        return ("launch", recipe, f"runtime.output={output}", f"parallel.dp={dp}", "runtime.threads=1", *more)

    def launch(self, output, dp: int, *more, **kwargs):
        return self(*self.arguments(output, dp, *more), **kwargs)

    def processes(self) -> dict[int, str]:
        """Ids and command lines of all processes that work in this folder's runs."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it has ended meanwhile
                continue
            if str(self.folder) in line and int(path.parent.name) != os.getpid():
                found[int(path.parent.name)] = line
        return found

    def worker(self, output, rank: int, timeout_s: float = 120) -> int:
        """The process id of a rank, when it has begun with its steps."""
        path, end = self.folder / output / "logs" / f"rank_{rank}.heartbeat", time.monotonic() + timeout_s
        while True:
            words = path.read_text().split() if path.exists() else []
            if len(words) == 5 and words[0] in ("data", "step") and int(words[1]) > 2:
                return int(words[3])
            assert time.monotonic() < end, f"rank {rank} makes no steps: {words}"
            time.sleep(0.02)


@pytest.fixture
def job(tmp_path) -> Job:
    """In a folder of the test's own."""
    fill_with_corpus(tmp_path)
    return Job(tmp_path)
