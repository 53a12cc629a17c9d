"""Tokens a second of data-parallel processes on one machine's CPU beside one process with as many threads in all.

usage: python tools/bench_data_parallel.py
       python tools/bench_data_parallel.py --sizes tiny --ranks 2 --rounds 5 --json dp.json

Both are whole commands, `mindmodel train` and `mindmodel launch`, on the standard library's text; they take turns.
Their losses must agree over the first steps, else the exit code is 1. The share of communication is the time that the
ranks need to sum the gradients with nothing else to do, measured after each launch, over the step's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Optional, Sequence

from bench.rivals import bench_parser, environment, machine, some_of, table, write_json
from bench.sizes import SIZES, recipe_of

from mindmodel.machine import usable_cores
from mindmodel.parallel.launch import plan_launch
from mindmodel.parallel.nodes import Nodes
from mindmodel.recipe.dump import recipe_to_dict, recipe_to_yaml
from mindmodel.recipe.schema import Recipe

SKIPPED_STEPS, COMPARED_STEPS, TOLERANCE = 5, 5, 1e-5
NUM_SUMS = 20
WORKER = Path(__file__).parent / "bench" / "sum_over_ranks.py"


@dataclass(frozen=True, kw_only=True)
class Row:
    """Medians over all rounds.

    Attributes:
        ratio: tokens a second of the ranks over those of one process; the median over the rounds of a round's.
        sum_s: seconds to sum the gradients over the ranks.
    """

    size: str
    ranks: int
    alone_s: float
    ranks_s: float
    ratio: float
    sum_s: float


def bench_recipe(size: str, steps: int) -> Recipe:
    """Trains a size of the benchmarks on real text, every step logged and nothing evaluated or saved in between."""
    return recipe_of(SIZES[size], usable_cores()).with_keys({
        "data.heldout": 0.0,
        "data.tokenizer_vocab_size": SIZES[size].vocab_size,
        "train.steps": steps,
        "optim.warmup_steps": steps // 2,
        "log.every": 1,
    })


def command(verb: str, recipe: Path, output: Path, *keys: str) -> list[dict[str, float]]:
    """The rows of metrics.jsonl that a whole run writes."""
    words = ["mindmodel", verb, str(recipe), f"runtime.output={output}", *keys]
    done = subprocess.run([sys.executable, "-m", *words], env=environment(), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    rows = (json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if "loss" in row]


def sum_s(recipe: Recipe, folder: Path) -> float:
    """Median seconds of a sum of the gradients over the ranks."""
    launch = plan_launch(recipe, Nodes(), ["unused"])
    result, source = folder / "sums.json", folder / "recipe.json"
    source.write_text(json.dumps(recipe_to_dict(recipe)))
    words = list(launch.command)
    words[words.index("-m"):] = [str(WORKER), str(source), str(NUM_SUMS), str(result)]
    words = [word.replace("--join=False", "--join=True") for word in words]
    subprocess.run(words, env={**environment(), **launch.environment}, check=True, capture_output=True, cwd=folder)
    return statistics.median(json.loads(result.read_text()))


def measure(size: str, args: argparse.Namespace, folder: Path) -> tuple[Row, float]:
    """A size's row, and the largest relative difference of the losses of the first steps."""
    recipe, path = bench_recipe(size, args.steps), folder / f"{size}.yaml"
    path.write_text(recipe_to_yaml(recipe))
    threads = max(1, usable_cores() // args.ranks)
    together = (f"parallel.dp={args.ranks}", f"runtime.threads={threads}")
    rounds, sums, apart = [], [], 0.0
    for number in range(args.rounds):
        alone = command("train", path, folder / f"{size}-alone-{number}")
        ranks = command("launch", path, folder / f"{size}-ranks-{number}", *together)
        for mine, other in zip(ranks[:COMPARED_STEPS], alone):
            apart = max(apart, abs(mine["loss"] / other["loss"] - 1))
        rounds.append([statistics.median(row["step_s"] for row in rows[SKIPPED_STEPS:]) for rows in (alone, ranks)])
        keys = {"parallel.dp": args.ranks, "runtime.threads": threads, "runtime.output": str(folder / "sums")}
        sums.append(sum_s(recipe.with_keys(keys), folder))
    row = Row(
        size=size,
        ranks=args.ranks,
        alone_s=statistics.median(alone for alone, _ in rounds),
        ranks_s=statistics.median(ranks for _, ranks in rounds),
        ratio=statistics.median(alone / ranks for alone, ranks in rounds),
        sum_s=statistics.median(sums),
    )
    return row, apart


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Measure and print."""
    parser = bench_parser(__doc__, rounds=3)
    parser.add_argument("--sizes", type=some_of(SIZES), default=["tiny", "small"], help="default tiny,small")
    parser.add_argument("--ranks", type=int, default=2, help="processes, default 2")
    parser.add_argument("--steps", type=int, default=30, help="of each run, default 30")
    args = parser.parse_args(argv)
    out, rows, apart = sys.stderr if args.json == "-" else sys.stdout, [], 0.0
    with tempfile.TemporaryDirectory(prefix="bench-data-parallel-") as folder:
        for size in args.sizes:
            row, difference = measure(size, args, Path(folder))
            rows, apart = [*rows, row], max(apart, difference)
    header = ["size", "", "one process s", f"{args.ranks} ranks s", "tokens/s ratio", "sum of gradients s", "share"]
    print(table(header, [
        [row.size, "", f"{row.alone_s:.3f}", f"{row.ranks_s:.3f}", f"{row.ratio:.2f}", f"{row.sum_s:.3f}",
         f"{row.sum_s / row.ranks_s:.0%}"] for row in rows
    ]), file=out)
    print(f"losses of the first {COMPARED_STEPS} steps differ by {apart:.1e} at most", file=out)
    write_json(args.json, {"machine": machine(usable_cores()), "rows": [asdict(row) for row in rows]})
    return int(apart > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
