"""The same training on many processes and nodes, through msrun. After a crash the same command goes on.

example:  mindmodel launch recipes/cpu/tiny.yaml parallel.dp=2
          mindmodel launch recipes/cpu/tiny.yaml runtime.device=ascend --device-ids 0-3
          mindmodel launch recipes/cpu/tiny.yaml parallel.dp=2 --nodes 2 --node-rank $R --master HOST:8118
          mindmodel launch recipes/cpu/tiny.yaml parallel.dp=2 --nodes 2 --node-rank $R --master HOST:8118 --check

On several nodes the same command runs on each, with a --node-rank of its own. Rank 0's progress is shown; every rank
has a log in RUN/logs. When a rank fails or hangs all are ended, and the first failure is shown; exit code 3. Ctrl-C and
SIGTERM save, as with `mindmodel train`; the same signal again ends all processes at once.

--check starts nothing: the nodes compare versions, recipe, code, data, folders, ports, clocks, disks and chips in one
table; exit code 1 when something is off.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mindmodel.checkpoint.run_folder import RunFolder
from mindmodel.cli.arguments import add_recipe_arguments, at_least
from mindmodel.errors import TrainingError
from mindmodel.parallel.launch import Launch, parse_device_ids, plan_launch
from mindmodel.parallel.nodes import nodes_of
from mindmodel.preflight.check import check
from mindmodel.recipe.load import load_with_changes
from mindmodel.recipe.schema import Recipe
from mindmodel.supervise.workers import INTERRUPTED, Outcome, run_launch
from mindmodel.terminal import Terminal
from mindmodel.train.run import Position, find_position, is_finished, open_run, owned


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="machines of the job (default 1)")
    parser.add_argument("--node-rank", type=int, metavar="R", help="of this machine, 0 to N - 1")
    parser.add_argument("--master", metavar="HOST[:PORT]", help="node 0; PORT and the next must be free there (8118)")
    parser.add_argument("--device-ids", metavar="IDS", help="Ascend devices of this node, such as 0,2,5-7")
    parser.add_argument(
        "--timeout", type=at_least(1), metavar="S", help="seconds until all must have met (default 600; --check 60)"
    )
    parser.add_argument(
        "--hang-limit",
        type=at_least(1),
        default=600,
        metavar="S",
        help="seconds without a sign of life until a rank counts as hanging (default 600)",
    )
    parser.add_argument("--check", action="store_true", help="are all nodes alike and fit? starts nothing")
    parser.add_argument("--print", action="store_true", help="show environment and command, and start nothing")


def run(args: argparse.Namespace) -> int:
    terminal, timeout_s = Terminal(), args.timeout or (60 if args.check else 600)
    recipe, changes = load_with_changes(args.recipe, args.overrides, single=args.single, shrink=args.shrink)
    launch = plan_launch(
        recipe,
        nodes_of(args.nodes, args.node_rank, args.master),
        _train_arguments(args),
        device_ids=args.device_ids,
        timeout_s=timeout_s,
        hang_limit_s=args.hang_limit,
    )
    if args.print:
        print(launch.shell())
        return 0
    if args.check:
        ids = None if args.device_ids is None else parse_device_ids(args.device_ids, "--device-ids")
        return check(launch.recipe, launch.nodes, terminal, timeout_s, ids)
    folder = RunFolder(Path(launch.recipe.output))
    position = find_position(launch.recipe, folder, terminal)
    if position.checkpoint is not None:
        position.checkpoint.release()  # the workers open it themselves
    if is_finished(launch.recipe, folder, position, terminal):
        return 0
    for change in changes if launch.nodes.rank else ():  # rank 0 says so elsewhere
        terminal.say(f"changed for this machine: {change}")
    _introduce(launch, terminal)
    try:
        outcome = run_launch(
            launch,
            terminal,
            timeout_s=timeout_s,
            hang_limit_s=args.hang_limit,
            prepare=lambda: _prepare(launch.recipe, folder, position, terminal),
        )
        return _report(outcome)
    except KeyboardInterrupt:
        terminal.say("interrupted before the workers ran: nothing was done.")
        return INTERRUPTED


def _prepare(recipe: Recipe, folder: RunFolder, position: Position, terminal: Terminal) -> None:
    """Make the data and refuse what cannot be, before a process is started."""
    with owned(folder):
        open_run(recipe, folder, position, terminal)


def _train_arguments(args: argparse.Namespace) -> list[str]:
    """Of `mindmodel train`, as they stood here."""
    options = [f"--{name}" for name in ("single", "shrink", "debug") if getattr(args, name)]
    return [args.recipe, *args.overrides, *options]


def _introduce(launch: Launch, terminal: Terminal) -> None:
    ranks, nodes = launch.ranks, launch.nodes
    here = f"ranks {ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else f"rank {ranks[0]}"
    node = f" on node {nodes.rank} of {nodes.count}" if nodes.count > 1 else ""
    terminal.say(f"launching {here} of {launch.workers}{node}; meeting at {nodes.master}:{nodes.port}")
    terminal.say(f"logs: {launch.logs}/worker_K.log")


def _report(outcome: Outcome) -> int:
    if outcome.failure is not None and outcome.failure.bad_input:
        print(outcome.failure.text, file=sys.stderr)
    elif outcome.failure is not None:
        raise TrainingError(outcome.failure.describe())
    return outcome.code
