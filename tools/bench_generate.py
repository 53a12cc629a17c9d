"""Tokens a second of greedy generation on CPU: mindmodel beside Hugging Face's generate on torch.

usage: python tools/bench_generate.py                              (needs the extra: pip install -e '.[test]')
       python tools/bench_generate.py --sizes small --batches 1 --json tokens.json

Both have the same weights, prompts of 32 random tokens, 128 new tokens and a key and value cache; torch is eager. They
are processes of their own that take turns. Tokens of all sequences of a batch count. The answers are compared.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Optional, Sequence

from bench.rivals import (
    add_threads,
    bench_parser,
    environment,
    foreign_cores,
    machine,
    median,
    noise,
    race,
    ratio,
    run_script,
    some_of,
    spread,
    table,
    write_json,
)
from bench.sizes import NUM_NEW, SIZES

RIVALS = {"mindmodel": "mindmodel_generate", "torch-eager": "torch_generate"}
Answers = list[list[int]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured of a rival at one batch size."""

    size: str
    rival: str
    batch: int
    tokens_s: float
    spread: float


def equal_tokens(ours: Answers, theirs: Answers) -> int:
    """Of all answers, before the first that differs: what follows a difference has another context."""
    return sum(
        sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(mine, other)))
        for mine, other in zip(ours, theirs, strict=True)
    )


def measure(size: str, batch: int, weights: Path, args: argparse.Namespace) -> tuple[list[Row], float, int, float]:
    """Rows, how many times as fast as torch mindmodel is, how many tokens are equal, cores that others used."""
    spec = {"size": size, "batch": batch, "folder": str(weights)}
    ours, theirs = race([(module, spec) for module in RIVALS.values()], args.rounds, args.threads, 2, at_least=1)
    rows = [
        Row(
            size=size,
            rival=rival,
            batch=batch,
            tokens_s=batch * NUM_NEW / median(child.rounds),
            spread=spread(child.rounds),
        )
        for rival, child in zip(RIVALS, (ours, theirs))
    ]
    num_equal = equal_tokens(ours.results[0], theirs.results[0])
    return rows, ratio(theirs.rounds, ours.rounds), num_equal, foreign_cores((ours, theirs))


def arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    """Of the command line."""
    parser = bench_parser(__doc__, rounds=3)
    add_threads(parser)
    parser.add_argument("--sizes", type=some_of(SIZES), default=["tiny", "small"], help="default tiny,small")
    parser.add_argument("--batches", default="1,8", help="sequences at once, default 1,8")
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Measure and print."""
    args = arguments(argv)
    out, all_rows = sys.stderr if args.json == "-" else sys.stdout, []
    for size in args.sizes:
        with tempfile.TemporaryDirectory(prefix="bench-weights-") as weights:
            subprocess.run([sys.executable, "-m", "bench.weights", size, weights], env=environment(), check=True)
            for batch in map(int, args.batches.split(",")):
                rows, factor, num_equal, foreign = measure(size, batch, Path(weights), args)
                lines = [[row.rival, row.size, str(batch), f"{row.tokens_s:.0f}", f"{row.spread:.0%}"] for row in rows]
                print(table(["rival", "size", "batch", "tokens_s", "spread"], lines), file=out)
                equal = f"{num_equal} of {batch * NUM_NEW} tokens are equal"
                print(f"mindmodel is {factor:.2f} times as fast; {equal}\n{noise(foreign)}\n", file=out, flush=True)
                all_rows += rows
    write_json(args.json, {"machine": machine(args.threads), "rows": [asdict(row) for row in all_rows]})
    return 0


if __name__ == "__main__":
    run_script(main)
