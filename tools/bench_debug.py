"""What debugging costs on CPU: seconds of a training step with a tool at work beside the step without it.

usage: python tools/bench_debug.py
       python tools/bench_debug.py --only trace --sizes tiny,small --dtypes float32 --rounds 5 --json debug.json

Both steps are processes of their own that take turns: a machine that drifts does so for both. Columns: medians, the
median over the rounds of their ratio, the spread (distance of the quartiles over the median) of the tool's times, and
the bound that the ratio must keep. The exit code is 1 if one does not, or if the losses of the two are not the same.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass, field
from typing import Mapping, Optional, Sequence

from bench.rivals import (
    add_threads,
    bench_parser,
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
from bench.sizes import SIZES


@dataclass(frozen=True, kw_only=True)
class Tool:
    """What is measured: the child with the tool at work, its keys, and how many times the step's time it may take."""

    child: str
    bound: float
    keys: Mapping[str, int] = field(default_factory=dict)


PLAIN = "mindmodel_step"
TOOLS = {
    "trace": Tool(child="traced_step", bound=3.0),
    "profile": Tool(child="profiled_step", bound=1.1),
    "norms": Tool(child=PLAIN, bound=1.03, keys={"norms_every": 1}),
}
DTYPES = ["float32", "bfloat16"]
HEADER = ["tool", "size", "dtype", "step_s", "with_tool_s", "ratio", "bound", "spread"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One tool at one size and dtype."""

    tool: str
    size: str
    dtype: str
    step_s: float
    with_tool_s: float
    ratio: float
    bound: float
    spread: float
    same_losses: bool

    @property
    def cells(self) -> list[str]:
        """As the table shows them."""
        times = [f"{self.step_s:.4f}", f"{self.with_tool_s:.4f}", f"{self.ratio:.2f}"]
        return [self.tool, self.size, self.dtype, *times, f"{self.bound:.2f}", f"{self.spread:.0%}"]

    @property
    def holds(self) -> bool:
        """Whether the tool costs no more than it may and changes nothing."""
        return self.ratio <= self.bound and self.same_losses


def measure(name: str, size: str, dtype: str, args: argparse.Namespace) -> tuple[Row, float]:
    """The row, and the cores that other processes used."""
    spec = {"size": size, "dtype": dtype, "cpu_kernels": args.cpu_kernels}
    rivals = (PLAIN, spec), (TOOLS[name].child, {**spec, **TOOLS[name].keys})
    plain, with_tool = race(rivals, args.rounds, args.threads, warm_up=4)
    count = min(len(plain.results), len(with_tool.results))
    row = Row(
        tool=name, size=size, dtype=dtype, step_s=median(plain.rounds), with_tool_s=median(with_tool.rounds),
        ratio=ratio(with_tool.rounds, plain.rounds), bound=TOOLS[name].bound, spread=spread(with_tool.rounds),
        same_losses=plain.results[:count] == with_tool.results[:count],
    )
    return row, foreign_cores((plain, with_tool))


def arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    """Of the command line."""
    parser = bench_parser(__doc__, rounds=5)
    add_threads(parser)
    parser.add_argument("--only", type=some_of(TOOLS), default=list(TOOLS), help=f"of {', '.join(TOOLS)}; default all")
    parser.add_argument("--sizes", type=some_of(SIZES), default=["tiny", "small"], help="default tiny,small")
    parser.add_argument("--dtypes", type=some_of(DTYPES), default=DTYPES, help=f"default {','.join(DTYPES)}")
    parser.add_argument("--cpu-kernels", default="native", choices=("native", "graph"), help="default native")
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Measure and print."""
    args = arguments(argv)
    out, rows = sys.stderr if args.json == "-" else sys.stdout, []
    for name in args.only:
        for size in args.sizes:
            for dtype in args.dtypes:
                row, foreign = measure(name, size, dtype, args)
                rows.append(row)
                print(table(HEADER, [row.cells]), file=out)
                alike = "" if row.same_losses else "THE LOSSES DIFFER\n"
                print(f"{alike}{noise(foreign)}\n", file=out, flush=True)
    write_json(args.json, {"machine": machine(args.threads), "rows": [asdict(row) for row in rows]})
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    run_script(main)
