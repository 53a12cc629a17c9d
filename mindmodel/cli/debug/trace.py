"""Compute one training step and keep all of it: activations, their gradients, the weights' gradients, new weights.

examples:
  mindmodel debug trace recipes/cpu/tiny.yaml
  mindmodel debug trace recipes/cpu/tiny.yaml train.compute_dtype=bfloat16 --out runs/tiny/trace-bf16
  mindmodel debug trace recipes/llama/8b.yaml --single --shrink
  mindmodel debug trace recipes/cpu/tiny.yaml --format msprobe --out runs/tiny/dump

The step is the one that training compiles, on the weights that the run begins with; train.init_from=RUN takes a run's
or a checkpoint's. Its tokens are random ones of the recipe's seed, or those of a step: --step N. It writes
FOLDER/trace.json and trace.safetensors, which `mindmodel debug compare` compares; with --format msprobe the files that
msprobe's compare and graph_visualize read, in FOLDER/step0/rank0. Nothing is trained.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Callable

from mindmodel.checkpoint.run_folder import RunFolder
from mindmodel.cli.arguments import add_recipe_arguments, at_least, load_as_asked
from mindmodel.cli.recipe import with_vocabulary
from mindmodel.debug.traces.inputs import Inputs, inputs_of
from mindmodel.debug.traces.msprobe import refuse_no_dump, write_dump
from mindmodel.debug.traces.trace import KINDS, Trace, json_number, read_trace, refuse_other_folder, write_trace
from mindmodel.parallel.loading import load_runtime
from mindmodel.recipe.schema import Recipe
from mindmodel.terminal import Terminal
from mindmodel.train.run import for_this_machine

FORMATS: dict[str, tuple[Callable[[Path], None], Callable[[Trace, Path], object]]] = {
    "mindmodel": (refuse_other_folder, write_trace),
    "msprobe": (refuse_no_dump, write_dump),
}
"""How a folder that holds something else is refused, and how a trace is written."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this subcommand."""
    add_recipe_arguments(parser)
    parser.add_argument("--step", type=at_least(1), metavar="N", help="tokens of this step; default: random ones")
    parser.add_argument("--like", type=Path, metavar="TRACE", help="tokens and labels of a trace"
                        " that was written before")
    parser.add_argument("--format", choices=tuple(FORMATS), default="mindmodel",
                        help="msprobe: the files of its PrecisionDebugger; default mindmodel")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where it is written; default: trace/ of the run")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    terminal = Terminal(sys.stderr if args.json else None)
    recipe = with_vocabulary(for_this_machine(load_as_asked(args, terminal)))
    folder = args.out or RunFolder(Path(recipe.output)).trace
    refuse, write = FORMATS[args.format]
    refuse(folder)
    inputs = inputs_of(recipe, args.step)
    if args.like:
        inputs = dataclasses.replace(inputs, batch=read_trace(args.like).batch)
    trace = _trace(recipe, inputs, " ".join([args.recipe, *args.overrides]), terminal)
    folder.parent.mkdir(parents=True, exist_ok=True)
    write(trace, folder)
    _report(trace, folder, args.json, terminal)
    return 0


def _trace(recipe: Recipe, inputs: Inputs, source: str, terminal: Terminal) -> Trace:
    runtime = load_runtime(recipe, "trace", terminal)
    from mindmodel.debug.traces.tapped import trace_step

    with terminal.working("compiling and computing the step"):
        return trace_step(recipe, inputs, runtime, source)


def _report(trace: Trace, folder: Path, as_json: bool, terminal: Terminal) -> None:
    counts = {kind: len(trace.tensors[kind]) for kind in KINDS}
    if as_json:
        numbers = {"loss": json_number(trace.loss), "grad_norm": json_number(trace.grad_norm)}
        print(json.dumps({**numbers, **counts, "folder": str(folder)}))
        return
    terminal.say(f"loss        {trace.loss:.6f}, gradient norm {trace.grad_norm:.6f}, {trace.dtype}")
    terminal.say(f"arrays      {', '.join(f'{kind} {count}' for kind, count in counts.items())}")
    terminal.say(f"wrote       {folder}")
