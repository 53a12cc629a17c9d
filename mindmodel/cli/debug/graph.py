"""What the compiler makes of a training step: its graph, its operators, and what a change did to it.

examples:
  mindmodel debug graph recipes/cpu/tiny.yaml
  mindmodel debug graph recipes/cpu/tiny.yaml --diff runs/tiny/graph --out runs/tiny/graph-2
  mindmodel debug graph recipes/llama/7b.yaml --single --shrink --device ascend

It prints what the compiler made of the step, and every operator that has no kernel on the device with the lines that
call it. It writes FOLDER/graph.json and the readable graphs FOLDER/1_parsed.ir, 2_optimized.ir and 3_kernels.ir, each
node with its line of Python. Nothing is trained and no data is read.

exit code: 0 it compiles; 1 operators have no kernel; 2 it cannot be compiled.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Iterator, Optional

from mindmodel.checkpoint.run_folder import RunFolder
from mindmodel.cli.arguments import add_recipe_arguments, at_least, load_as_asked
from mindmodel.cli.recipe import with_vocabulary
from mindmodel.debug.graph.compile import CompiledStep, compile_for_ascend, compile_on_cpu, compiled_anew, tell_seconds
from mindmodel.debug.graph.difference import changes
from mindmodel.debug.graph.summary import GraphSummary, Missing, read_summary
from mindmodel.dryrun.run import chosen_ranks
from mindmodel.files import write_texts_safely
from mindmodel.parallel.loading import load_runtime
from mindmodel.parallel.mesh import mesh_of
from mindmodel.recipe.rules import resolve_degrees
from mindmodel.recipe.schema import Recipe
from mindmodel.terminal import Terminal, data_size
from mindmodel.train.run import for_this_machine

SUMMARY_NAME = "graph.json"
SHOWN = 10
"""Rows of a table on the terminal; graph.json has all."""
IN_A_LINE = 8
"""Operators that are counted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this subcommand."""
    add_recipe_arguments(parser)
    parser.add_argument("--device", choices=("cpu", "ascend"), default="cpu", help="ascend is simulated; default cpu")
    parser.add_argument("--devices", type=at_least(1), default=1, metavar="N", help="with --device ascend: of the job")
    parser.add_argument("--rank", type=at_least(0), default=0, metavar="K", help="with --device ascend: which of them")
    parser.add_argument("--diff", type=Path, metavar="OLD", help="what changed since: a graph.json, or its folder")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where it is written; default: graph/ of the run")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    terminal = Terminal(sys.stderr if args.json else None)
    old = read_summary(args.diff / SUMMARY_NAME if args.diff.is_dir() else args.diff) if args.diff else None
    recipe = load_as_asked(args, terminal, args.devices if args.device == "ascend" else None)
    if args.device == "cpu":
        step = _on_cpu(with_vocabulary(for_this_machine(recipe)), terminal)
    else:
        step = _for_ascend(with_vocabulary(resolve_degrees(recipe, args.devices)), args.rank, terminal)
    summary = step.summary(recipe.name, args.device)
    folder = args.out or RunFolder(Path(recipe.output)).graph
    written = _write(step, summary, folder)
    differences = changes(old, summary) if old else None
    if args.json:
        print(json.dumps({**summary.to_json(), "changes": differences, "files": written}))
    else:
        lines = [*_lines(summary), *_difference_lines(differences, args.diff)]
        terminal.say("\n".join([*lines, *(f"wrote       {name}" for name in written), *_missing_lines(summary)]))
    return 1 if summary.missing else 0


def _on_cpu(recipe: Recipe, terminal: Terminal) -> CompiledStep:
    recipe = compiled_anew(recipe)
    runtime = load_runtime(recipe, "graph", terminal)
    from mindmodel.train.build import build

    tell_seconds()
    built = build(recipe)
    with terminal.working("compiling the training step"):
        return compile_on_cpu(built.whole, built.example(recipe), runtime.cache)


def _for_ascend(recipe: Recipe, rank: int, terminal: Terminal) -> CompiledStep:
    chosen_ranks(mesh_of(recipe.parallel), [rank])
    with terminal.working("compiling the training step for a simulated device"):
        return compile_for_ascend(recipe, rank)


def _write(step: CompiledStep, summary: GraphSummary, folder: Path) -> list[str]:
    """The summary and the readable stages; gives the paths."""
    stages = {f"{name}.ir": text for name, text in step.stages.items()}
    return write_texts_safely(folder, {SUMMARY_NAME: json.dumps(summary.to_json(), indent=1), **stages})


def _lines(summary: GraphSummary) -> Iterator[str]:
    """The whole report but the operators without a kernel."""
    yield f"graph       {summary.num_nodes} nodes for {summary.device}, MindSpore {summary.mindspore}"
    yield from _operator_count_lines(summary)
    yield "layers      nodes of our own code, and nodes that automatic differentiation made"
    for part, (own, made) in summary.layers.items():
        yield f"  {part:<24}{own:>8}{made:>8}"
    yield from _parameter_lines(summary)
    yield from _constant_lines(summary)
    yield "largest     results of nodes"
    for tensor in summary.tensors[:SHOWN]:
        yield f"  {data_size(tensor.num_bytes):>9}  {tensor.type}  {tensor.kind} of {tensor.place}  {tensor.where}"
    yield f"casts       {sum(cast.count for cast in summary.casts)}"
    for cast in summary.casts[:SHOWN]:
        yield f"  {cast.count:>9}  {cast.before} to {cast.after} of {cast.origin}  {cast.where}"
    yield from _compile_lines(summary)


def _operator_count_lines(summary: GraphSummary) -> Iterator[str]:
    counts = [f"{kind} {count}" for kind, count in summary.kinds.items()]
    for first in range(0, len(counts), IN_A_LINE):
        yield f"{'' if first else 'operators':<12}{', '.join(counts[first:first + IN_A_LINE])}"


def _parameter_lines(summary: GraphSummary) -> Iterator[str]:
    rows = summary.parameters
    total = sum(row.num_bytes for row in rows)
    yield f"parameters  {sum(row.count for row in rows)}, with the optimizer's: {data_size(total)}"
    for row in summary.frozen:
        yield f"  never updated: {row.name} {row.type}, {row.count} of them: {data_size(row.num_bytes)}"


def _constant_lines(summary: GraphSummary) -> Iterator[str]:
    rows = summary.constants
    yield f"constants   {sum(row.copies for row in rows)}: {data_size(sum(row.num_bytes for row in rows))}"
    for row in rows[:SHOWN]:
        yield f"  {data_size(row.num_bytes):>9}  {row.copies} x {row.type} in {row.place}  {row.where}"
    for row in summary.duplicates:
        yield f"  held {row.copies} times: {row.type}, read in {row.place}  {row.where}"


def _compile_lines(summary: GraphSummary) -> Iterator[str]:
    phases = dict(summary.compile_s)
    if not phases:
        return
    total = phases.pop("total", 0.0)
    longest = sorted(phases.items(), key=lambda item: -item[1])[:SHOWN // 2]
    yield f"compiled    in {total:.1f} s: {', '.join(f'{name} {seconds:.1f}' for name, seconds in longest)}"


def _difference_lines(differences: Optional[list[str]], old: Path) -> Iterator[str]:
    if differences is None:
        return
    yield f"changes     since {old}" if differences else f"changes     none since {old}"
    for line in differences:
        yield f"  {line}"


def _missing_lines(summary: GraphSummary) -> Iterator[str]:
    if not summary.missing:
        limit = ", as far as MindSpore knows; what CANN itself has is seen on a chip"
        yield f"kernels     all operators have one{limit if summary.device == 'ascend' else ''}"
        return
    yield f"kernels     {len(summary.missing)} operators have none on this device:"
    for one in summary.missing:
        yield from _operator_lines(one)


def _operator_lines(one: Missing) -> Iterator[str]:
    yield f"  {one.operator} ({one.types}), {one.count} nodes: {one.reason}"
    for where in one.where[:SHOWN]:
        yield f"    {where}"
