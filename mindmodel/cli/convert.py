"""Weights to and from Hugging Face folders, and proof that both are equal; to and from MindFormers' checkpoints.

examples:
  mindmodel convert to-hf runs/tiny exported/tiny --dtype bfloat16
  mindmodel convert from-hf downloads/Qwen3-0.6B runs/qwen3
  mindmodel convert check runs/qwen3 downloads/Qwen3-0.6B
  mindmodel convert to-mindformers runs/qwen3 output/checkpoint
  mindmodel convert from-mindformers output/checkpoint runs/went_on --model downloads/Qwen3-0.6B

RUN is a run folder (its newest whole checkpoint is taken) or one of its checkpoints/step_N folders.
Only safetensors are read and written.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mindmodel.cli.arguments import add_subcommand
from mindmodel.convert.check import differences
from mindmodel.convert.hf import from_hf, to_hf
from mindmodel.convert.mindformers import from_mindformers, to_mindformers
from mindmodel.convert.written import Written
from mindmodel.models.weight_rules import WEIGHT_DTYPES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands and their arguments."""
    names = "to-hf | from-hf | check | to-mindformers | from-mindformers"
    subparsers = parser.add_subparsers(dest="subcommand", metavar=names, required=True)
    export = add_subcommand(subparsers, "to-hf", "write a run's weights as a Hugging Face folder")
    export.add_argument("source", metavar="RUN", type=Path, help="run or checkpoint folder")
    export.add_argument("target", metavar="OUT", type=Path, help="new or empty folder")
    export.add_argument("--dtype", choices=WEIGHT_DTYPES, help="default: as stored")
    load = add_subcommand(subparsers, "from-hf", "make a run of a Hugging Face folder")
    load.add_argument("source", metavar="DIR", type=Path, help="folder with config.json and safetensors")
    load.add_argument("target", metavar="RUN", type=Path, help="new or empty folder")
    meaning = "compare a run with a Hugging Face folder; exit code 1 if they differ"
    check = add_subcommand(subparsers, "check", meaning)
    check.add_argument("source", metavar="RUN", type=Path, help="run or checkpoint folder")
    check.add_argument("target", metavar="DIR", type=Path, help="Hugging Face folder")
    give = add_subcommand(subparsers, "to-mindformers", "write a run's weights as MindFormers' checkpoint folder")
    give.add_argument("source", metavar="RUN", type=Path, help="run or checkpoint folder")
    give.add_argument("target", metavar="OUT", type=Path, help="new or empty folder")
    give.add_argument("--dtype", choices=WEIGHT_DTYPES, help="default: as stored")
    take = add_subcommand(subparsers, "from-mindformers", "make a run of weights that MindFormers has saved")
    take.add_argument("source", metavar="DIR", type=Path, help="checkpoint folder, or one iteration_N in it")
    take.add_argument("target", metavar="RUN", type=Path, help="new or empty folder")
    take.add_argument("--model", metavar="DIR", type=Path, help="with config.json and tokenizer; default: DIR")
    leaves = [export, load, check, give, take]  # each gets the flags that all verbs have
    parser.leaves = leaves  # type: ignore[attr-defined]


def run(args: argparse.Namespace) -> int:
    """Convert or compare, and print what was written or what differs."""
    if args.subcommand == "check":
        return _check(args.source, args.target)
    if args.subcommand == "to-hf":
        _report(to_hf(args.source, args.target, args.dtype))
    elif args.subcommand == "to-mindformers":
        _report(to_mindformers(args.source, args.target, args.dtype))
    elif args.subcommand == "from-mindformers":
        _report(from_mindformers(args.source, args.target, args.model))
    else:
        _report(from_hf(args.source, args.target))
    return 0


def _check(source: Path, target: Path) -> int:
    found = differences(source, target)
    for line in found:
        print(line)
    print(f"{len(found)} differences" if found else f"{source} and {target} are the same model, bit by bit")
    return 1 if found else 0


def _report(written: Written) -> None:
    size = f"{written.num_tensors} tensors, {written.num_bytes:,} bytes, {written.dtype}"
    print(f"wrote {written.path}: {size}")
    for name in written.files:
        print(f"  {name}")
