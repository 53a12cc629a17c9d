"""The command `mindmodel`: finds the verb, imports only its file, turns errors into one message and an exit code."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import shutil
import sys
import textwrap
from typing import Optional, Sequence

from mindmodel import __version__
from mindmodel.cli.help import HelpFormatter
from mindmodel.errors import MindModelError, TrainingError, first_line
from mindmodel.parallel.rank_error import report_error
from mindmodel.terminal import ended_by_interrupt

VERBS = {
    "train": "train a model from a recipe; continues when its run folder holds a run",
    "launch": "the same training on many processes and nodes through msrun",
    "dryrun": "compile a layout for N simulated Ascend devices: memory, collectives, kernels, proof",
    "debug": "look into a training step: its graph, time, memory and numbers, and the first NaN",
    "recipe": "show a recipe resolved, with its parameters, tokens, memory and disk",
    "generate": "sample text from a run",
    "eval": "loss and perplexity of a run on held-out tokens or a text",
    "checkpoint": "what is in a checkpoint, is it whole, what differs, all of it in one file",
    "convert": "to and from Hugging Face folders",
    "doctor": "what this machine can do and what is missing",
}


def _overview() -> str:
    columns, names = shutil.get_terminal_size().columns - 1, max(map(len, VERBS)) + 4
    lines = [
        textwrap.fill(f"  {verb:<{names - 4}}  {summary}", columns, subsequent_indent=" " * names)
        for verb, summary in VERBS.items()
    ]
    return "\n".join(["usage: mindmodel VERB ... (mindmodel VERB --help explains one)", "", *lines, "",
                      "first:  mindmodel train recipes/cpu/tiny.yaml"])


def parse_arguments(verb: str, arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments of one verb; only that verb's file is imported.

    Its `add_arguments` gives the parsers of its subcommands by name, or nothing.
    """
    module = importlib.import_module(f"mindmodel.cli.{verb}")
    parser = argparse.ArgumentParser(
        prog=f"mindmodel {verb}", description=module.__doc__, formatter_class=HelpFormatter
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
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):  # its encoding may lack a character, as ASCII does
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            return _answer(arguments)
        finally:
            sys.stdout.flush()  # at the interpreter's end a failure could only be complained about
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe went away, as `head` does
        _discard_output()
        return 0
    except OSError as error:  # its disk is full
        _discard_output()
        return _fail(error, 2, "--debug" in arguments)


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_closed_streams() -> None:
    """A standard stream that the caller has closed leads nowhere: else a file of ours could get its number."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, encoding="utf-8"))


def _answer(arguments: Sequence[str]) -> int:
    """What main does, but for a standard output that cannot be written."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"mindmodel {__version__}")
        return 0
    if arguments[0] not in VERBS:
        from mindmodel.recipe.values import nearest

        works = nearest(arguments[0], VERBS) or f" Use one of: {', '.join(VERBS)}."
        print(f"mindmodel: '{arguments[0]}' is no verb.{works}", file=sys.stderr)
        return 2
    try:
        with ended_by_interrupt():
            args = parse_arguments(arguments[0], arguments[1:])
        return _run(args)
    except ModuleNotFoundError as error:
        if "--debug" in arguments:
            raise
        print(f"mindmodel: the package '{error.name}' is missing. Use pip install -e . in its folder.", file=sys.stderr)
        return 2


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
    except BrokenPipeError:
        raise
    except OSError as error:
        return _fail(error, 2, args.debug)
    except (MemoryError, RuntimeError) as error:  # NumPy's, and MindSpore's with pages of text
        if args.debug:
            raise
        text = f"MindSpore failed: {first_line(error)}. The same command with --debug shows all."
        return _fail(TrainingError(text), 3, args.debug)
