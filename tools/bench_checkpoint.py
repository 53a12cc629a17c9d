"""Seconds and memory of saving and loading: mindmodel beside plain files, MindSpore, torch and safetensors.

usage: python tools/bench_checkpoint.py                              (needs the extra: pip install -e '.[test]')
       python tools/bench_checkpoint.py --gib 8 --rounds 5 --folder /mnt/disk --json checkpoint.json

Every measurement is a process of its own, in turns; medians over the rounds, of which a first one of writing does not
count. All that is written goes into new files and is synced to the disk; `sequential` is what `dd conv=fsync` does with
the same bytes, `verified` is the first rank's load, which compares all checksums before. Cold: the kernel's copies of
the files were dropped. `index` is that of a 70B model on 8,192 ranks, from sharing out to reading it back.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterable, Iterator, Optional, Sequence

from bench.rivals import ChildFailed, bench_parser, environment, machine, run_script, table, write_json

from mindmodel.checkpoint.blocks import Block
from mindmodel.checkpoint.index import Index
from mindmodel.checkpoint.layout import optimizer_placements, weight_placements
from mindmodel.checkpoint.part import Part
from mindmodel.checkpoint.save import tensor_entries
from mindmodel.checkpoint.shares import Piece, pieces
from mindmodel.checkpoint.slices import Table
from mindmodel.machine import usable_cores
from mindmodel.parallel.mesh import mesh_of
from mindmodel.recipe.load import load_with_changes

RIVALS = ("sequential", "mindmodel", "mindspore", "safetensors", "torch")
WRITES = tuple(f"write_{rival}" for rival in RIVALS)
READS = tuple(f"read_{rival}" for rival in (*RIVALS, "verified"))
METHODS = (*WRITES, *READS, "block_copy", "block_mindmodel")
FACTS: dict[str, Any] = {"step": 1, "samples": 0, "tokens": 0, "recipe": {}, "versions": {}, "random": {}}
SHA256 = "0" * 64
LARGE = Path(__file__).parents[1] / "recipes" / "llama" / "70b_1024.yaml"
DP, LEVELS = 128, ("none", "states")

Result = dict[str, Any]


def measure(method: str, folder: Path, num_bytes: int) -> Result:
    """What one process has found."""
    command = [sys.executable, "-m", "bench.checkpoint", method, str(folder), str(num_bytes)]
    done = subprocess.run(command, env=environment(), cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise ChildFailed(f"{method}: {done.stderr[-1000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measured_rounds(folder: Path, num_bytes: int, count: int) -> list[dict[str, Result]]:
    """By method, in order: what is read must have been written."""
    for method in WRITES:
        measure(method, folder, num_bytes)
    return [{method: measure(method, folder, num_bytes) for method in METHODS} for _ in range(count)]


def summary(rounds: Sequence[dict[str, Result]], num_bytes: int) -> list[Result]:
    """A row for each method: medians over the rounds, and the share of the plain files' speed in the same round."""
    rows = []
    for method, key in [*((method, "seconds") for method in METHODS), *((method, "warm_seconds") for method in READS)]:
        kind = method.partition("_")[0]
        plain = "block_copy" if kind == "block" else f"{kind}_sequential"
        seconds = [done[method][key] for done in rounds]
        rows.append({
            "method": method,
            "cache": {"seconds": "cold" if kind == "read" else "", "warm_seconds": "warm"}[key],
            "gb_s": num_bytes / statistics.median(seconds) / 1e9,
            "of_plain": statistics.median(done[plain][key] / done[method][key] for done in rounds),
            "spread": (max(seconds) - min(seconds)) / statistics.median(seconds),
            "peak_mib": max(done[method]["peak_bytes"] for done in rounds) / 2**20,
        })
    return rows


def index_row(level: str, folder: Path) -> Result:
    """Seconds to share a 70B model and its optimizer out over 8,192 ranks, and for the index of what they wrote."""
    recipe, _ = load_with_changes(str(LARGE), [f"parallel.shard_optimizer={level}", "parallel.dp=16"])
    recipe = recipe.with_keys({"parallel.dp": DP})
    with timed() as shared_out:
        weights = weight_placements(recipe)
        placements = {**weights, **optimizer_placements(weights)}
        found = list(pieces(placements, mesh_of(recipe.parallel)))
    parts = _parts_of(found, placements)
    with timed() as assembled:
        files = {name: size for part in parts for name, size in part.files.items()}
        index = Index(files=files, tensors=tensor_entries(placements, parts), layout={}, **FACTS)
        assert not index.fault()
    with timed() as written:
        index.write(folder)
    with timed() as read:
        Index.read(folder)
    return {
        "level": level,
        "slices": len(found),
        "compute_s": shared_out[0] + assembled[0],
        "write_s": written[0],
        "read_s": read[0],
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
    }


@contextmanager
def timed() -> Iterator[list[float]]:
    """Seconds of the block."""
    seconds, begin = list[float](), time.perf_counter()
    yield seconds
    seconds.append(time.perf_counter() - begin)


def _parts_of(found: Sequence[Piece], placements: Iterable[str]) -> list[Part]:
    """What each rank tells the first; ranks make them at the same time, so this does not count."""
    numbers = {name: number for number, name in enumerate(placements)}
    rows: dict[int, list[tuple[int, int, Block, str]]] = {}
    for piece in found:
        rows.setdefault(piece.rank, []).append((numbers[piece.name], 0, piece, SHA256))
    return [Part(files={f"rank{rank}": 1}, slices=Table.of(mine)) for rank, mine in rows.items()]


def arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    """Of the command line."""
    parser = bench_parser(__doc__, rounds=3)
    parser.add_argument("--gib", type=float, default=0.5, help="of tensors, default 0.5; memory holds them three times")
    parser.add_argument("--folder", help="on the disk to measure; default that of temporary files")
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Measure and print."""
    args = arguments(argv)
    num_bytes = int(args.gib * 2**30)
    with tempfile.TemporaryDirectory(prefix="bench-checkpoint-", dir=args.folder) as folder:
        rows = summary(measured_rounds(Path(folder), num_bytes, args.rounds), num_bytes)
    lines = [
        [row["method"], row["cache"], f"{row['gb_s']:.2f}", f"{row['of_plain']:.2f}", f"{row['spread']:.0%}",
         f"{row['peak_mib']:.0f}"] for row in rows
    ]
    out = sys.stderr if args.json == "-" else sys.stdout
    print(table(["method", "cache", "GB/s", "of plain", "spread", "peak MiB"], lines), file=out)
    speed = {row["method"]: row["gb_s"] for row in rows}
    share = speed["write_mindmodel"] / speed["block_mindmodel"]
    print(f"the loop is held up for {share:.1%} of the time that the whole save takes", file=out)
    indices = []
    for level in LEVELS:
        with tempfile.TemporaryDirectory(prefix="bench-checkpoint-", dir=args.folder) as folder:
            indices.append(row := index_row(level, Path(folder)))
        print(
            f"index of 70B on 8,192 ranks, shard_optimizer={level}: {row['slices']:,} slices, {row['bytes']:,} bytes; "
            f"computed in {row['compute_s']:.1f} s, written in {row['write_s']:.1f} s, read in {row['read_s']:.1f} s",
            file=out,
        )
    write_json(args.json, {"machine": machine(usable_cores()), "rows": rows, "index": indices})
    return 0


if __name__ == "__main__":
    run_script(main)
