"""The command `mindmodel`: finds the verb, imports only its file, turns errors into one message and an exit code."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from typing import Optional, Sequence

from mindmodel import __version__
from mindmodel.errors import MindModelError, TrainingError
from mindmodel.parallel.rank_error import report_error

VERBS = {
    "train": "train a model from a recipe; continues when its run folder holds a run",
    "launch": "the same training on many processes and nodes through msrun",
    "dryrun": "compile a layout for N simulated Ascend devices: memory, collectives, kernels, proof",
    "debug": "what the compiler made of a training step, and which operators have no kernel",
    "recipe": "show a recipe resolved, with its parameters, tokens, memory and disk",
    "generate": "sample text from a run",
    "eval": "loss and perplexity of a run on held-out tokens or a text",
    "checkpoint": "what is in a checkpoint, is it whole, what differs, all of it in one file",
    "convert": "to and from Hugging Face folders",
    "doctor": "what this machine can do and what is missing",
}


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {summary}" for verb, summary in VERBS.items()]
    return "\n".join(["usage: mindmodel VERB ... (mindmodel VERB --help explains one)", "", *lines, "",
                      "first:  mindmodel train recipes/cpu/tiny.yaml"])


def parse_arguments(verb: str, arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments of one verb; only that verb's file is imported.

    Its `add_arguments` gives the parsers of its subcommands by name, or nothing.
    """
    module = importlib.import_module(f"mindmodel.cli.{verb}")
    parser = argparse.ArgumentParser(
        prog=f"mindmodel {verb}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subcommands = module.add_arguments(parser) or {}
    for leaf in subcommands.values() or [parser]:
        leaf.add_argument("--debug", action="store_true", help="show the traceback of an error")
    # key=value may stand behind an option; argparse can do that only where a parser has no subcommands
    name = arguments[0] if arguments else None
    if name in subcommands:
        args = subcommands[name].parse_intermixed_args(arguments[1:], argparse.Namespace(subcommand=name))
    else:
        args = parser.parse_args(arguments) if subcommands else parser.parse_intermixed_args(arguments)
    args.run = module.run
    return args


def _fail(error: BaseException, code: int, debug: bool) -> int:
    if debug:
        raise error
    report_error(error)
    return code


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run one verb.

    Returns:
        0 done, 1 the thing asked about is not so, 2 bad input or a missing part, 3 failed while running,
        130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # its encoding may lack a character, as ASCII does
        sys.stdout.reconfigure(errors="backslashreplace")
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"mindmodel {__version__}")
        return 0
    if arguments[0] not in VERBS:
        print(f"mindmodel: '{arguments[0]}' is no verb. Use one of: {', '.join(VERBS)}.", file=sys.stderr)
        return 2
    try:
        return _run(parse_arguments(arguments[0], arguments[1:]))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(args: argparse.Namespace) -> int:
    """The verb, with its errors as exit codes."""
    try:
        return args.run(args)
    except BrokenPipeError:
        raise
    except (MindModelError, OSError) as error:
        return _fail(error, 2, args.debug)
    except TrainingError as error:
        return _fail(error, 3, args.debug)
