"""Look into a training step: what the compiler made of it, what it computes, and where two computations of it part.

examples:
  mindmodel debug graph recipes/cpu/tiny.yaml
  mindmodel debug step recipes/cpu/tiny.yaml --break layers.0.attention
  mindmodel debug replay runs/tiny --from 120 --to 130
  mindmodel debug compare recipes/cpu/tiny.yaml recipes/cpu/tiny.yaml:runtime.cpu_kernels=graph
  mindmodel debug nan runs/tiny
  mindmodel debug graph --help

From a symptom to the command that finds its cause: docs/debugging.md.
"""

from __future__ import annotations

import argparse
import importlib
from types import ModuleType

from mindmodel.cli.arguments import add_subcommands

SUBCOMMANDS = {
    "graph": "what the compiler made of a training step, and every operator without a kernel",
    "profile": "where the time of a training step goes, and its memory",
    "step": "optimizer steps in PyNative mode, where breakpoints and prints work in a construct",
    "replay": "steps of a run made again from a checkpoint: are they the same bit for bit?",
    "trace": "all that one training step computes, kept in a folder",
    "compare": "where two ways of computing the same training step part",
    "nan": "the first tensor of a run that is not finite: step, layer, operator, sample",
}
"""Each is a file of this folder."""


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def add_arguments(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The subcommands and their arguments."""
    subcommands = add_subcommands(parser, SUBCOMMANDS)
    for name, subcommand in subcommands.items():
        module = _module(name)
        subcommand.description = module.__doc__
        module.add_arguments(subcommand)
    return subcommands


def run(args: argparse.Namespace) -> int:
    """Run one subcommand."""
    return _module(args.subcommand).run(args)
