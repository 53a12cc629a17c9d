"""Seconds and memory of saving and loading: mindmodel beside plain files, MindSpore, torch and safetensors.

usage: python tools/bench_checkpoint.py                              (needs the extra: pip install -e '.[test]')
       python tools/bench_checkpoint.py --gib 8 --rounds 5 --folder /mnt/disk --json checkpoint.json

Every measurement is a process of its own, in turns. All that is written is synced to the disk; `sequential` is what
`dd conv=fsync` does with the same bytes. Cold: the kernel's copies of the files were dropped. `index` computes which of
8,192 ranks writes which slice of a 70B model.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Optional, Sequence

from bench.rivals import ChildFailed, environment, machine, table, write_json

from mindmodel.checkpoint.layout import optimizer_placements, weight_placements
from mindmodel.checkpoint.shares import pieces
from mindmodel.machine import usable_cores
from mindmodel.parallel.mesh import mesh_of
from mindmodel.recipe.load import load_with_changes

RIVALS = ("sequential", "mindmodel", "mindspore", "safetensors", "torch")
LARGE = Path(__file__).parents[1] / "recipes" / "llama" / "70b_1024.yaml"
DP, LEVELS = 128, ("none", "states")

Result = dict[str, Any]


def measure(method: str, folder: Path, num_bytes: int, cold: bool) -> Result:
    """Seconds and peak_bytes of one process."""
    command = [sys.executable, "-m", "bench.checkpoint", method, str(folder), str(num_bytes)]
    command.append("cold" if cold else "warm")
    done = subprocess.run(command, env=environment(), cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise ChildFailed(f"{method}: {done.stderr[-1000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def jobs() -> list[tuple[str, bool]]:
    """(method, whether the cache is dropped) of a round, in order: what is read must have been written."""
    writes = [(f"write_{rival}", False) for rival in RIVALS]
    reads = [(f"read_{rival}", cold) for cold in (True, False) for rival in (*RIVALS, "verified")]
    return [*writes, *reads, ("block_copy", False), ("block_mindmodel", False)]


def index_seconds(level: str) -> tuple[float, int]:
    """Time to share a 70B model and its optimizer out over 8,192 ranks, and how many slices that gives."""
    recipe, _ = load_with_changes(str(LARGE), [f"parallel.shard_optimizer={level}", "parallel.dp=16"])
    parallel = dataclasses.replace(recipe.parallel, dp=DP)
    recipe = dataclasses.replace(recipe, parallel=parallel)
    begin = time.perf_counter()
    weights = weight_placements(recipe)
    count = sum(1 for _ in pieces({**weights, **optimizer_placements(weights)}, mesh_of(parallel)))
    return time.perf_counter() - begin, count


def summary(rounds: Sequence[dict[tuple[str, bool], Result]], num_bytes: int) -> list[Result]:
    """A row for each method: medians over the rounds, and the share of the plain files' speed in the same round."""
    rows = []
    for method, cold in jobs():
        kind = method.partition("_")[0]
        plain = ("block_copy", False) if kind == "block" else (f"{kind}_sequential", cold)
        seconds = [done[method, cold]["seconds"] for done in rounds]
        rows.append({
            "method": method,
            "cold": cold,
            "gb_s": num_bytes / statistics.median(seconds) / 1e9,
            "of_plain": statistics.median(done[plain]["seconds"] / done[method, cold]["seconds"] for done in rounds),
            "spread": (max(seconds) - min(seconds)) / statistics.median(seconds),
            "peak_mib": max(done[method, cold]["peak_bytes"] for done in rounds) / 2**20,
        })
    return rows


def arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2.0, help="of tensors, default 2; memory holds them three times")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--folder", help="on the disk to measure; default that of temporary files")
    parser.add_argument("--json", metavar="FILE", help="also as JSON; - is standard output")
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Measure and print."""
    args = arguments(argv)
    num_bytes, rounds = int(args.gib * 2**30), []
    with tempfile.TemporaryDirectory(prefix="bench-checkpoint-", dir=args.folder) as folder:
        for _ in range(args.rounds):
            rounds.append({job: measure(job[0], Path(folder), num_bytes, job[1]) for job in jobs()})
    rows = summary(rounds, num_bytes)
    lines = [
        [row["method"], "cold" if row["cold"] else "", f"{row['gb_s']:.2f}", f"{row['of_plain']:.2f}",
         f"{row['spread']:.0%}", f"{row['peak_mib']:.0f}"] for row in rows
    ]
    out = sys.stderr if args.json == "-" else sys.stdout
    print(table(["method", "cache", "GB/s", "of plain", "spread", "peak MiB"], lines), file=out)
    blocked = {row["method"]: row["gb_s"] for row in rows}
    share = blocked["write_mindmodel"] / blocked["block_mindmodel"]
    print(f"the loop is held up for {share:.1%} of the time that the whole save takes", file=out)
    index = {level: index_seconds(level) for level in LEVELS}
    for level, (seconds, count) in index.items():
        print(f"index of 70B on 8,192 ranks, shard_optimizer={level}: {count:,} slices in {seconds:.1f} s", file=out)
    write_json(args.json, {"machine": machine(usable_cores()), "rows": rows, "index": index})
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ChildFailed as error:
        sys.exit(str(error))
