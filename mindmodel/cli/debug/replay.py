"""Steps of a run made again from a checkpoint, on the same samples: are loss and gradient norm the same bit for bit?

examples:
  mindmodel debug replay runs/tiny --from 120 --to 130
  mindmodel debug replay runs/tiny --from 120 --to 130 runtime.mode=pynative
  mindmodel debug replay runs/tiny --from 129 --to 130 --break layers.0.attention
  mindmodel debug replay runs/cluster --from 1000 --to 1001 --single

It begins at the newest whole checkpoint at or before step N, or at the run's beginning, and compares with what
metrics.jsonl says; of steps between two lines (log.every) nothing is known. key=value changes this replay alone, as
another mode, other kernels or threads. --break opens pdb in the steps after N, in PyNative mode. The run is only read,
also while it goes on.

exit code: 0 all that was compared is the same; 1 a step differs, the first one is named; 130 left from the debugger.
"""

from __future__ import annotations

import argparse
import bdb
from pathlib import Path
from typing import TYPE_CHECKING

from mindmodel.cli.arguments import add_break_argument, add_overrides, at_least
from mindmodel.debug.breakpoints import LEFT, break_at, failure_named
from mindmodel.debug.in_memory import in_memory
from mindmodel.debug.replay.find import Replay, find_replay
from mindmodel.debug.replay.record import Numbers, recorded
from mindmodel.errors import CheckpointError
from mindmodel.terminal import Terminal

if TYPE_CHECKING:
    from mindmodel.train.stepping import Stepping


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this subcommand."""
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="a run's folder")
    add_overrides(parser, "for this replay: runtime.mode=pynative")
    parser.add_argument("--from", dest="first", type=at_least(0), required=True, metavar="N", help="step to begin at")
    parser.add_argument("--to", dest="last", type=at_least(1), required=True, metavar="M", help="last step to make")
    add_break_argument(parser)
    parser.add_argument("--single", action="store_true", help="what several ranks have trained, in one process")


def run(args: argparse.Namespace) -> int:
    terminal = Terminal()
    keys = [*args.overrides, *(["runtime.mode=pynative"] if args.place else [])]
    replay = find_replay(args.run_folder, args.first, terminal, overrides=keys, single=args.single)
    _refuse_range(replay, args.first, args.last)
    rows = recorded(replay.rows)
    start = replay.opened.position.step
    if not any(start < step <= args.last for step in rows):
        raise CheckpointError(
            f"{replay.opened.folder.metrics_file}: tells of no step from {start + 1} to {args.last}, so there is "
            f"nothing to compare; it has a line every {replay.opened.recipe.log.every} steps. Use a larger --to."
        )
    stepping = in_memory(replay.opened, terminal)
    try:
        return _compare(stepping, rows, args, terminal)
    except bdb.BdbQuit:
        terminal.say(f"left in step {stepping.step + 1}")
        return LEFT


def _refuse_range(replay: Replay, first: int, last: int) -> None:
    path, end = replay.opened.folder.path, replay.stretch.end
    if last <= first:
        raise CheckpointError(f"{path}: --from {first} --to {last}: no step is between them. Use a larger --to.")
    if last > replay.last:
        raise CheckpointError(f"{path}: has made {replay.last} steps; --to {last} is beyond. Use up to {replay.last}.")
    if end is not None and last > end:
        raise CheckpointError(
            f"{path}: from step {end} on the run had another recipe; --to {last} is beyond. Replay to {end}, "
            f"or from {end} on."
        )


def _compare(stepping: "Stepping", rows: dict[int, Numbers], args: argparse.Namespace, terminal: Terminal) -> int:
    """Make the steps; gives the exit code."""
    differing, compared, start = [], 0, stepping.step
    while stepping.step < args.last:
        if args.place and stepping.step == args.first:
            break_at(stepping.built.step.network, args.place)
        with failure_named(stepping.step + 1):
            loss, norm, _ = stepping.one_step()
        step, made = stepping.step, Numbers.of(loss, norm)
        if step not in rows:
            terminal.status(f"step {step}: {made}, not in metrics.jsonl")
            continue
        compared += 1
        unlike = ", ".join(made.unlike(rows[step]))
        differing += [step] if unlike else []
        terminal.say(f"step {step}: {made}: {unlike or 'the same'}")
    unknown = args.last - start - compared
    rest = f"; metrics.jsonl does not tell of the other {unknown}" if unknown else ""
    if differing:
        terminal.say(f"{len(differing)} of {compared} steps differ, the first is step {differing[0]}{rest}")
        return 1
    terminal.say(f"{compared} steps are the same bit for bit{rest}")
    return 0
