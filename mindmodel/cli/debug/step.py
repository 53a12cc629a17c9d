"""Optimizer steps in PyNative mode, where Python runs the model line by line: breakpoints and prints work in construct.

examples:
  mindmodel debug step recipes/cpu/tiny.yaml
  mindmodel debug step recipes/cpu/tiny.yaml --break layers.0.attention
  mindmodel debug step recipes/llama/8b.yaml --single --shrink --steps 2

The same recipe as `mindmodel train`, on the first samples of its corpus, with the weights that a run begins with. The
terminal is yours: `breakpoint()` in a layer stops there, and so does --break, without a change to the code; `c` goes
on, `q` leaves. Losses are those of the compiled graph; a step takes many times as long.

Nothing is saved. A corpus that is not there yet is made in the run folder, where `mindmodel train` will find it.
"""

from __future__ import annotations

import argparse
import bdb
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mindmodel.checkpoint.run_folder import RunFolder
from mindmodel.cli.arguments import add_break_argument, add_recipe_arguments, at_least, load_as_asked
from mindmodel.debug.breakpoints import LEFT, break_at, failure_named
from mindmodel.debug.in_memory import in_memory
from mindmodel.recipe.schema import Recipe
from mindmodel.terminal import Terminal
from mindmodel.train.run import OpenedRun, Position, for_this_machine, open_run, owned, reopen_run

if TYPE_CHECKING:
    from mindmodel.train.stepping import Stepping


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this subcommand."""
    add_recipe_arguments(parser)
    parser.add_argument("--steps", type=at_least(1), default=1, metavar="N", help="optimizer steps, default 1")
    add_break_argument(parser)


def run(args: argparse.Namespace) -> int:
    terminal = Terminal()
    recipe = for_this_machine(load_as_asked(args, terminal)).with_keys({"runtime.mode": "pynative"})
    stepping = in_memory(_opened(recipe, terminal), terminal)
    if args.place is not None:
        break_at(stepping.built.step.network, args.place)
    try:
        for _ in range(args.steps):
            terminal.say(_one_step(stepping))
    except bdb.BdbQuit:
        terminal.say(f"left in step {stepping.step + 1}")
        return LEFT
    return 0


def _opened(recipe: Recipe, terminal: Terminal) -> OpenedRun:
    """The recipe's run at its beginning; its folder is written only if it has no corpus yet."""
    folder = RunFolder(Path(recipe.output))
    if (folder.data if recipe.data.path is None else folder.tokenizer).exists():
        return reopen_run(recipe, folder, 0, terminal)
    with owned(folder):
        return open_run(recipe, folder, Position(checkpoint=None, changes=()), terminal)


def _one_step(stepping: "Stepping") -> str:
    """Make the next step; gives what happened in it."""
    start = time.perf_counter()
    with failure_named(stepping.step + 1):
        loss, norm, lr = stepping.one_step()
    clip = stepping.recipe.train.clip_norm
    clipped = f", clipped to {clip:g}" if 0 < clip < norm else ""
    seconds = time.perf_counter() - start
    return (
        f"step {stepping.step}: loss {loss:.6f}, gradient norm {norm:.6f}{clipped}, learning rate {lr:.3g}, "
        f"{stepping.recipe.train.tokens_per_step:,} tokens in {seconds:.1f} s"
    )
