"""The asking side of a benchmark: rivals in processes of their own that take turns, in rounds."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Collection, Iterable, Optional, Sequence

from mindmodel.machine import cpu_features, usable_cores

TOOLS = Path(__file__).parents[1]
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
TURN_S = 1.5
LOG_LINES = 12
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
QUIET_CORES = 0.1


class ChildFailed(Exception):
    """A rival failed: its error, or the end of what it printed."""


class Child:
    """A rival's process.

    Args:
        module: of the folder bench, as `torch_step`.
        spec: what to work on; `warm_up`, how often to work before the first reply, is added.
        folder: for its log and caches, so that nothing is compiled already.
        threads: CPU threads.
    """

    def __init__(self, module: str, spec: dict[str, Any], folder: Path, threads: int, warm_up: int) -> None:
        folder.mkdir()
        self._module, self._log = module, folder / "log"
        caches = {"MINDMODEL_CACHE": str(folder), "TORCHINDUCTOR_CACHE_DIR": str(folder)}
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"bench.{module}", json.dumps({**spec, "threads": threads, "warm_up": warm_up})],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=folder,
                env=environment(OMP_NUM_THREADS=str(threads), **caches),
            )
        self.results: list[Any] = []
        self.rounds: list[list[float]] = []
        self.compile_s, self.peak_bytes, self._pace_s = 0.0, 0, 1.0
        self.foreign_cores: list[float] = []

    def warm_up(self) -> None:
        """Wait until it has compiled and warmed up."""
        reply = self._reply()
        self.compile_s, self._pace_s = reply["compile_s"], min(reply["seconds"], default=reply["compile_s"])

    def take_turn(self, at_least: int) -> None:
        """Work for about TURN_S seconds, not less than that often; the times are a new round."""
        count = max(at_least, round(TURN_S / self._pace_s))
        begin, others_s = time.perf_counter(), self._others_s()
        try:
            print(count, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            pass  # it has ended; the reply will say so
        self.rounds.append(self._reply()["seconds"])
        self.foreign_cores.append((self._others_s() - others_s) / (time.perf_counter() - begin))

    def _others_s(self) -> float:
        """Seconds of CPU that all other processes have used since the machine was started, stolen ones too."""
        user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
        own = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (user + nice + system + irq + softirq + steal - int(own[11]) - int(own[12])) / TICKS_PER_S

    def _reply(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            self.close()
            tail = self._log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            raise ChildFailed("\n".join([f"{self._module}: exit code {self._process.returncode}", *tail]))
        reply = json.loads(line)
        if "error" in reply:
            self.close()
            raise ChildFailed(f"{self._module}: {reply['error']}")
        self.results += reply["results"]
        self.peak_bytes = max(self.peak_bytes, reply["peak_bytes"])
        return reply

    def close(self) -> None:
        """Let it end."""
        self._process.communicate()


def environment(**more: str) -> dict[str, str]:
    """For a child: this one's and `more`, with the tools and the package on Python's path."""
    given = {**os.environ, **more}
    path = os.pathsep.join([str(TOOLS), str(TOOLS.parent), *filter(None, [given.get("PYTHONPATH")])])
    return {**given, "PYTHONPATH": path}


def race(
    rivals: Iterable[tuple[str, dict[str, Any]]], num_rounds: int, threads: int, warm_up: int, at_least: int = 2
) -> list[Child]:
    """Rivals, given by module and spec, that were warmed up one after another and had their turns; they have ended."""
    children: list[Child] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        try:
            for module, spec in rivals:
                children.append(Child(module, spec, Path(folder) / str(len(children)), threads, warm_up))
                children[-1].warm_up()
            interleave(children, num_rounds, at_least)
        finally:
            for child in children:
                child.close()
    return children


def interleave(children: Sequence[Child], num_rounds: int, at_least: int = 2) -> None:
    """Rounds in which every rival has a turn; each round begins with another one."""
    for number in range(num_rounds):
        first = number % max(1, len(children))
        for child in (*children[first:], *children[:first]):
            child.take_turn(at_least)


def median(rounds: Iterable[Sequence[float]]) -> float:
    """Over all rounds."""
    return statistics.median([value for values in rounds for value in values])


def spread(rounds: Iterable[Sequence[float]]) -> float:
    """Distance of the quartiles over the median; 0 of a single value."""
    values = [value for part in rounds for value in part]
    if len(values) == 1:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / middle


def ratio(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """Median over the rounds of (median of ours / median of theirs): what drifts from round to round cancels."""
    return statistics.median(
        statistics.median(mine) / statistics.median(other) for mine, other in zip(ours, theirs, strict=True)
    )


def foreign_cores(children: Iterable[Child]) -> float:
    """Cores that other processes used while a rival was at work, on average."""
    return statistics.mean([cores for child in children for cores in child.foreign_cores])


def noise(cores: float) -> str:
    """What to think of the figures when other processes used so many cores."""
    if cores <= QUIET_CORES:
        return f"quiet: other processes used {cores:.2f} cores meanwhile"
    return f"NOT QUIET: other processes used {cores:.2f} cores meanwhile, which rivals bear unequally; measure again"


def machine(threads: int) -> dict[str, Any]:
    """CPU model, features that matter to matmuls, usable cores and the threads that were used."""
    return {
        "cpu": _cpu_model(Path("/proc/cpuinfo")) or platform.machine(),
        "features": [name for name in FEATURES if name in cpu_features()],
        "cores": usable_cores(),
        "threads": threads,
    }


def _cpu_model(cpuinfo: Path) -> Optional[str]:
    found = re.search(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE)
    return found[1] if found else None


def bench_parser(doc: Optional[str], rounds: int) -> argparse.ArgumentParser:
    """With what every benchmark takes: --rounds, of this default, and --json."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"turns of each, default {rounds}")
    parser.add_argument("--json", metavar="FILE", help="also as JSON; - is standard output")
    return parser


def run_script(main: Callable[[], int]) -> None:
    """End the process as `main` says; a rival that failed is a message."""
    try:
        sys.exit(main())
    except ChildFailed as error:
        sys.exit(str(error))


def add_threads(parser: argparse.ArgumentParser) -> None:
    """--threads."""
    parser.add_argument("--threads", type=int, default=usable_cores(), help="default all cores this process may use")


def some_of(names: Collection[str]) -> Callable[[str], list[str]]:
    """An argparse type: names with commas between them."""

    def parse(text: str) -> list[str]:
        if unknown := set(text.split(",")) - set(names):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose from {', '.join(names)}")
        return text.split(",")

    return parse


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns of text, the first two to the left and the others to the right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )


def write_json(target: Optional[str], content: dict[str, Any]) -> None:
    """To a file, to standard output if the target is `-`, or nowhere."""
    if target == "-":
        print(json.dumps(content, indent=1))
    elif target is not None:
        Path(target).write_text(json.dumps(content, indent=1) + "\n")
