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

from mindmodel.cli.arguments import add_subcommands
from mindmodel.cli.checkpoint import print_differences
from mindmodel.convert.check import differences
from mindmodel.convert.hf import from_hf, to_hf
from mindmodel.convert.mindformers import from_mindformers, to_mindformers
from mindmodel.convert.written import Written
from mindmodel.models.weight_rules import WEIGHT_DTYPES

SUBCOMMANDS = {
    "to-hf": "write a run's weights as a Hugging Face folder",
    "from-hf": "make a run of a Hugging Face folder",
    "check": "compare a run with a Hugging Face folder; exit code 1 if they differ",
    "to-mindformers": "write a run's weights as MindFormers' checkpoint folder",
    "from-mindformers": "make a run of weights that MindFormers has saved",
}


def add_arguments(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The subcommands and their arguments."""
    subcommands = add_subcommands(parser, SUBCOMMANDS)
    for name in ("to-hf", "check", "to-mindformers"):
        subcommands[name].add_argument("source", metavar="RUN", type=Path, help="run or checkpoint folder")
    for name, text in (
        ("from-hf", "folder with config.json and safetensors"),
        ("from-mindformers", "checkpoint folder, or one iteration_N in it"),
    ):
        subcommands[name].add_argument("source", metavar="DIR", type=Path, help=text)
    subcommands["check"].add_argument("target", metavar="DIR", type=Path, help="Hugging Face folder")
    for name in ("from-hf", "from-mindformers"):
        subcommands[name].add_argument("target", metavar="RUN", type=Path, help="new or empty folder")
    for name in ("to-hf", "to-mindformers"):
        subcommands[name].add_argument("target", metavar="OUT", type=Path, help="new or empty folder")
        subcommands[name].add_argument("--dtype", choices=WEIGHT_DTYPES, help="default: as stored")
    subcommands["from-mindformers"].add_argument(
        "--model", metavar="DIR", type=Path, help="with config.json and tokenizer; default: DIR"
    )
    return subcommands


def run(args: argparse.Namespace) -> int:
    """Convert or compare, and print what was written or what differs."""
    if args.subcommand == "check":
        same = f"{args.source} and {args.target} are the same model, bit by bit"
        return print_differences(differences(args.source, args.target), same)
    if args.subcommand == "to-hf":
        _report(to_hf(args.source, args.target, args.dtype))
    elif args.subcommand == "to-mindformers":
        _report(to_mindformers(args.source, args.target, args.dtype))
    elif args.subcommand == "from-mindformers":
        _report(from_mindformers(args.source, args.target, args.model))
    else:
        _report(from_hf(args.source, args.target))
    return 0


def _report(written: Written) -> None:
    size = f"{written.num_tensors} tensors, {written.num_bytes:,} bytes, {written.dtype}"
    print(f"wrote {written.path}: {size}")
    for name in written.files:
        print(f"  {name}")
