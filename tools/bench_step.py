"""Seconds of a whole training step on CPU: mindmodel beside Hugging Face's Llama on torch.

usage: python tools/bench_step.py                                  (needs the extra: pip install -e '.[test]')
       python tools/bench_step.py --sizes tiny,small --rounds 5 --json steps.json
       python tools/bench_step.py --sizes small --rivals mindmodel-native,torch-compile --dtypes float32

A step is forward, backward, clipping to the global norm 1 and AdamW (torch's fused one), from the same weights on the
same tokens. Every rival is a process of its own, and they take turns: a machine that drifts does so for all. The losses
of the first steps must agree, else the exit code is 1. With all rivals alive at once, size larger needs about 20 GB;
choose with --rivals and --dtypes. Compilers begin with empty caches.

Columns: median and spread (distance of the quartiles over the median) of all step times; peak memory above that of the
imports; time to the end of the first step, without imports; matmul_share, the FLOP of a step (6 N + 6 L S D a token: N
the parameters without the embedding table, attention's causal half of 12 L S D) over the time, over what the faster of
MindSpore's and torch's float32 matmuls of the model's own shapes reach alone. Ratios are medians over the rounds of the
ratio in a round. With precision "medium" torch may round the operands of matmuls to bfloat16, so it is compared with
bfloat16.
"""

from __future__ import annotations

import argparse
import itertools
import math
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional, Sequence

from bench.rivals import (
    Child,
    ChildFailed,
    add_threads,
    bench_parser,
    environment,
    foreign_cores,
    interleave,
    machine,
    median,
    noise,
    ratio,
    run_script,
    some_of,
    spread,
    table,
    write_json,
)
from bench.sizes import NUM_BATCHES, SIZES, Size

RIVALS = {
    "mindmodel-graph": ("mindmodel_step", {"cpu_kernels": "graph"}, ("float32", "bfloat16")),
    "mindmodel-native": ("mindmodel_step", {"cpu_kernels": "native"}, ("float32", "bfloat16")),
    "torch-eager": ("torch_step", {"compile": False}, ("float32", "float32-medium", "bfloat16")),
    "torch-compile": ("torch_step", {"compile": True}, ("float32", "float32-medium", "bfloat16")),
    "mindformers": ("mindformers_step", {}, ("float32",)),
}
"""Name -> child, its own settings, dtypes."""

DEFAULT_RIVALS = tuple(name for name in RIVALS if name != "mindformers")
PRECISIONS = {"float32": "float32", "float32-medium": "bfloat16", "bfloat16": "bfloat16"}
TOLERANCES = {"float32": 1e-3, "bfloat16": 2e-2}
MATMULS = ("mindspore", "torch")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured of a rival: `rounds` of seconds a step, `losses` of the first steps."""

    rival: str
    dtype: str
    rounds: list[list[float]]
    losses: list[float]
    compile_s: float
    peak_bytes: int

    @property
    def precision(self) -> str:
        """float32 or bfloat16: rows of one precision are compared."""
        return PRECISIONS[self.dtype]

    @property
    def median_s(self) -> float:
        """A step."""
        return median(self.rounds)

    @property
    def is_ours(self) -> bool:
        """Whether it is one of mindmodel's."""
        return self.rival.startswith("mindmodel")

    @property
    def is_torch(self) -> bool:
        """Whether it is one of torch's."""
        return self.rival.startswith("torch")


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Seconds of a row over those of a torch row; `is_best`: the best of either side in this precision."""

    size: str
    precision: str
    row: str
    against: str
    ratio: float
    is_best: bool


def disagreements(rows: Sequence[Row]) -> list[str]:
    """A line for each row whose first losses are not those of the first float32 row, or the first of all."""
    if not rows:
        return []
    reference = min(rows, key=lambda row: row.dtype != "float32")
    faults = []
    for row in rows:
        tolerance = TOLERANCES[row.precision]
        for step, (loss, wanted) in enumerate(zip(row.losses, reference.losses), 1):
            if not math.isclose(loss, wanted, rel_tol=tolerance):
                faults.append(
                    f"{row.rival} {row.dtype}: loss of step {step} is {loss:.5f}, that of {reference.rival} "
                    f"{reference.dtype} {wanted:.5f}; they may differ by {tolerance:g} of it"
                )
                break
    return faults


def ratios(size: str, rows: Sequence[Row]) -> list[Ratio]:
    """Of each row to each torch row of its precision."""
    found = []
    for precision in TOLERANCES:
        inside = [row for row in rows if row.precision == precision]
        ours = min((row for row in inside if row.is_ours), key=lambda row: row.median_s, default=None)
        theirs = min((row for row in inside if row.is_torch), key=lambda row: row.median_s, default=None)
        for row, against in itertools.product(inside, inside):
            if against.is_torch and row is not against:
                found.append(
                    Ratio(
                        size=size,
                        precision=precision,
                        row=f"{row.rival} {row.dtype}",
                        against=f"{against.rival} {against.dtype}",
                        ratio=ratio(row.rounds, against.rounds),
                        is_best=row is ours and against is theirs,
                    )
                )
    return found


def row_report(size: Size, row: Row, peak_flops: float) -> dict[str, Any]:
    """A row as JSON."""
    return {
        "size": size.name,
        "rival": row.rival,
        "dtype": row.dtype,
        "median_s": row.median_s,
        "spread": spread(row.rounds),
        "peak_bytes": row.peak_bytes,
        "compile_s": row.compile_s,
        "matmul_share": size.step_flop / row.median_s / peak_flops,
    }


def show(size: Size, rows: Sequence[Row], found: Sequence[Ratio], peaks: dict[str, float], foreign: float) -> str:
    """The table of a size, and the best of both sides."""
    against = list(dict.fromkeys(item.against for item in found))
    values = {(item.row, item.against): f"{item.ratio:.2f}" for item in found}
    header = ["rival", "dtype", "median_s", "spread", "peak_MB", "compile_s", "matmul_share"]
    lines = []
    for row in rows:
        report = row_report(size, row, max(peaks.values()))
        cells = [f"{report['median_s']:.4f}", f"{report['spread']:.0%}", f"{row.peak_bytes / 1e6:.0f}"]
        cells += [f"{row.compile_s:.1f}", f"{report['matmul_share']:.2f}"]
        cells += [values.get((f"{row.rival} {row.dtype}", other), "") for other in against]
        lines.append([row.rival, row.dtype, *cells])
    rates = ", ".join(f"{name} {flops / 1e9:.0f} GFLOP/s" for name, flops in peaks.items())
    title = f"{size.name}: {size.step_flop / 1e9:.1f} GFLOP a step; float32 matmuls alone: {rates}"
    best = [
        f"{item.precision}: {item.row} takes {item.ratio:.2f} of the time of {item.against}"
        for item in found
        if item.is_best
    ]
    return "\n".join([title, table([*header, *(f"/ {name}" for name in against)], lines), *best, noise(foreign), ""])


def start(size: Size, args: argparse.Namespace, folder: Path) -> tuple[dict[tuple[str, str], Child], list[str]]:
    """All rivals, warmed up one after another, and what became of those that failed."""
    weights = folder / "weights"
    weights.mkdir()
    subprocess.run([sys.executable, "-m", "bench.weights", size.name, str(weights)], env=environment(), check=True)
    wanted = {(f"matmul-{name}", "float32"): (f"matmul_{name}", {}) for name in MATMULS}
    for rival, dtype in itertools.product(args.rivals, args.dtypes):
        module, settings, dtypes = RIVALS[rival]
        if dtype in dtypes:
            wanted[rival, dtype] = (module, {**settings, "dtype": dtype, "folder": str(weights)})
    children, failures = {}, []
    for key, (module, settings) in wanted.items():
        child = Child(module, {"size": size.name, **settings}, folder / "-".join(key), args.threads, NUM_BATCHES)
        try:
            child.warm_up()
            children[key] = child
        except ChildFailed as error:
            failures.append(f"{' '.join(key)} failed: {error}")
            if module.startswith("matmul"):
                raise
    return children, failures


def measure(size: Size, args: argparse.Namespace) -> tuple[list[Row], dict[str, float], float, list[str]]:
    """Rows, FLOP/s of the matmuls alone, cores that other processes used, and failures."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        children, failures = start(size, args, Path(folder))
        try:
            interleave(list(children.values()), args.rounds)
        finally:
            for child in children.values():
                child.close()
    foreign = foreign_cores(children.values())
    matmuls = {name: children.pop((f"matmul-{name}", "float32")) for name in MATMULS}
    peaks = {name: size.matmul_flop / median(child.rounds) for name, child in matmuls.items()}
    rows = [
        Row(
            rival=rival,
            dtype=dtype,
            rounds=child.rounds,
            losses=child.results[:NUM_BATCHES],
            compile_s=child.compile_s,
            peak_bytes=child.peak_bytes,
        )
        for (rival, dtype), child in children.items()
    ]
    return rows, peaks, foreign, failures


def arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    """Of the command line."""
    parser = bench_parser(__doc__, rounds=3)
    add_threads(parser)
    parser.add_argument("--sizes", type=some_of(SIZES), default=list(SIZES), help="default tiny,small,larger")
    parser.add_argument("--rivals", type=some_of(RIVALS), default=list(DEFAULT_RIVALS), help=", ".join(RIVALS))
    parser.add_argument("--dtypes", type=some_of(PRECISIONS), default=list(PRECISIONS), help=", ".join(PRECISIONS))
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Measure, print, and tell whether all rivals did the same work."""
    args = arguments(argv)
    content: dict[str, Any] = {"machine": machine(args.threads), "rows": [], "ratios": []}
    content |= {"matmul_flops": {}, "foreign_cores": {}}
    out, faults = sys.stderr if args.json == "-" else sys.stdout, []
    for name in args.sizes:
        size = SIZES[name]
        rows, peaks, foreign, failures = measure(size, args)
        found = ratios(name, rows)
        print(show(size, rows, found, peaks, foreign), file=out, flush=True)
        faults += [f"{name}: {fault}" for fault in (*failures, *disagreements(rows))]
        content["rows"] += [row_report(size, row, max(peaks.values())) for row in rows]
        content["ratios"] += [asdict(item) for item in found]
        content["matmul_flops"][name], content["foreign_cores"][name] = peaks, foreign
    write_json(args.json, content)
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    run_script(main)
