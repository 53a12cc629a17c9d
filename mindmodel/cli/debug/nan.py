"""The first tensor of a training run that is not finite: its step, layer, operator, sample, and what went in.

examples:
  mindmodel debug nan runs/tiny
  mindmodel debug nan runs/tiny --step 120

The step is made again from the newest checkpoint before it, with the same samples, and then once more with every
result as an output. Nothing is written. Without --step it is the step that ended the run, or that was the first of the
last ones that are not finite.

exit code: 0 all finite; 1 something is not; 2 the step cannot be made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, Optional

from mindmodel.cli.arguments import at_least
from mindmodel.debug.nan.in_run import Report, find_nan
from mindmodel.debug.replay.record import Numbers
from mindmodel.terminal import Terminal

if TYPE_CHECKING:
    from mindmodel.debug.nan.in_step import Finding
    from mindmodel.debug.nan.values import Range

PHASES = {
    "read": "before the step", "forward": "in the forward pass", "backward": "in the backward pass",
    "update": "after the update",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this subcommand."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run folder, as `mindmodel train` prints it")
    parser.add_argument("--step", type=at_least(1), metavar="N", help="look into this step")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    terminal = Terminal(sys.stderr if args.json else None)
    report = find_nan(args.folder, args.step, terminal)
    if args.json:
        print(json.dumps(_plain(report)))
    else:
        terminal.say("\n".join(_lines(report, args.step)))
    return 0 if report.is_finite else 1


def _plain(report: Report) -> dict[str, Any]:
    """For JSON, which has no number that is not finite."""
    return {**dataclasses.asdict(report), **dataclasses.asdict(Numbers.of(report.loss, report.grad_norm))}


def _lines(report: Report, asked: Optional[int]) -> Iterator[str]:
    yield f"step        {report.step}: loss {report.loss:.6g}, gradient norm {report.grad_norm:.6g}"
    if asked is not None and report.step < asked:
        yield f"            the run's step {asked} comes after it"
    if report.is_finite:
        yield "all finite: weights, optimizer, loss, gradients"
    elif report.finding is None:
        yield "not found   computed one by one, all operators of the step give finite numbers: the fused ones do not."
        yield "            Train with runtime.cpu_kernels=native, or without the package `decorator`, to find it."
    else:
        yield from _finding_lines(report.finding, report)


def _finding_lines(found: Finding, report: Report) -> Iterator[str]:
    yield f"not finite  {found.tensor}, {PHASES[found.phase]}"
    if found.operator:
        yield f"operator    {found.operator}{f', {found.where}' if found.where else ''}"
    yield f"values      {_range(found.range)}"
    if found.phase == "read" and report.start:
        yield f"            so in the checkpoint of step {report.start} already: look into --step {report.start}"
    if found.sequence is not None:
        token = "" if found.token is None else f", token {found.token}"
        position = report.first_sample + found.sequence
        yield f"sample      sequence {found.sequence} of the batch, {position} in the run's order{token}"
    if found.inputs:
        yield "inputs      all finite:"
    for operand in found.inputs:
        yield f"  {operand.name}: {_range(operand.range)}"


def _range(numbers: Range) -> str:
    text = numbers.type
    if numbers.low is not None:
        text += f" {numbers.low:.4g} to {numbers.high:.4g}"
    if numbers.num_bad:
        index = ", ".join(map(str, numbers.first_bad))
        text += f", {numbers.num_bad:,} not finite, the first {numbers.bad} at [{index}]"
    return text
