"""Where two ways of computing the same training step part: the first place that rounding does not explain.

examples:
  mindmodel debug compare recipes/cpu/tiny.yaml recipes/cpu/tiny.yaml:runtime.cpu_kernels=graph
  mindmodel debug compare recipes/cpu/tiny.yaml recipes/cpu/tiny.yaml:train.compute_dtype=bfloat16 model.num_layers=2
  mindmodel debug compare runs/tiny/trace recipes/cpu/tiny.yaml --all
  mindmodel debug compare recipes/cpu/tiny.yaml recipes/cpu/tiny.yaml:parallel.tp=2 --shrink

A and B are each a recipe, a recipe with settings of its own (RECIPE:key=value,key=value), or a folder that `mindmodel
debug trace` wrote. A recipe whose degrees make several devices is compiled for all ranks, which are executed in NumPy.
A Hugging Face folder is computed by transformers on torch, and a recipe beside it begins with its weights. A dump of
msprobe is read. Behind them stand key=value pairs of both. Weights and tokens are the same on both sides.

It prints the largest absolute and relative difference of activations, their gradients, the weights' gradients and the
weights after the step, a layer in a line, and all places of a layer where something is not explained.

exit code: 0 rounding explains every difference; 1 they part; 2 they cannot be compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any, Callable, Iterable, Iterator, Optional

from mindmodel.cli.arguments import add_overrides, at_least
from mindmodel.debug.traces.compare import Comparison, Difference, compare_traces
from mindmodel.debug.traces.sides import Common, open_sides
from mindmodel.debug.traces.trace import KINDS, Trace, json_number
from mindmodel.terminal import Terminal

TITLES = {
    "activation": "activation", "activation_grad": "its gradient", "weight_grad": "weight's gradient",
    "weight": "new weight",
}
NAME_WIDTH, CELL_WIDTH = 36, 19


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this subcommand."""
    parser.add_argument("a", metavar="A", help="a recipe, a recipe:key=value,key=value, or the folder of a "
                        "trace, of a Hugging Face model or of a dump of msprobe")
    parser.add_argument("b", metavar="B", help="the same")
    add_overrides(parser, "put on top of both recipes")
    parser.add_argument("--single", action="store_true", help="all parallel degrees 1: runs on one device")
    parser.add_argument("--shrink", action="store_true", help="the same structure in small sizes")
    parser.add_argument("--step", type=at_least(1), metavar="N", help="tokens of this step; default: random ones")
    parser.add_argument("--all", action="store_true", help="every place of every layer")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    terminal = Terminal(sys.stderr if args.json else None)
    common = Common(overrides=tuple(args.overrides), single=args.single, shrink=args.shrink, step=args.step)
    one, other = open_sides((args.a, args.b), common, terminal)
    comparison = compare_traces(one, other)
    if args.json:
        print(json.dumps(_as_json(comparison, one, other)))
    else:
        terminal.say("\n".join(_lines(comparison, one, other, args.all)))
    return 0 if comparison.first is None else 1


def _as_json(comparison: Comparison, one: Trace, other: Trace) -> dict[str, Any]:
    sides = [
        {"source": side.source, "dtype": side.dtype, "loss": json_number(side.loss),
         "grad_norm": json_number(side.grad_norm)}
        for side in (one, other)
    ]
    rows = [_row_as_json(row) for row in comparison.rows]
    first = comparison.first and _row_as_json(comparison.first)
    return {"a": sides[0], "b": sides[1], "first": first, "left_out": comparison.left_out, "differences": rows}


def _row_as_json(row: Difference) -> dict[str, Any]:
    return {name: json_number(value) if type(value) is float else value for name, value in asdict(row).items()}


def _lines(comparison: Comparison, one: Trace, other: Trace, every: bool) -> Iterator[str]:
    for title, side in (("A", one), ("B", other)):
        yield f"{title:<12}{side.source}: {side.dtype}, loss {side.loss:.6f}, gradient norm {side.grad_norm:.6f}"
    yield "largest differences, absolute and relative; ! is not explained"
    yield "".join([" " * NAME_WIDTH, *(f"{TITLES[kind]:>{CELL_WIDTH}}" for kind in KINDS)]).rstrip()
    for layer, rows in _by(_layer, comparison.rows).items():
        if every or any(row.beyond for row in rows):
            yield from (_line(place, here) for place, here in _by(_place, rows).items())
        else:
            yield _line(layer if len(rows) > 1 else _place(rows[0]), rows)
    if comparison.left_out:
        some = ", ".join(comparison.left_out[:3])
        yield f"left out    {len(comparison.left_out)} arrays that only one side has: {some} ..."
    yield _verdict(comparison, one, other)


def _verdict(comparison: Comparison, one: Trace, other: Trace) -> str:
    first = comparison.first
    if not any(row.largest for row in comparison.rows):
        return "equal       at every place, in every number"
    if first is None:
        dtypes = " and ".join(dict.fromkeys([one.dtype, other.dtype]))
        return f"agree       rounding of {dtypes} explains every difference"
    return (
        f"part at     {first.place}, {TITLES[first.kind]}: typical relative difference {first.typical:.1e}, largest "
        f"{first.relative:.1e}; its inputs and rounding explain {first.explained:.1e}"
    )


def _place(row: Difference) -> str:
    """The Cell that a row is about: a weight's is its name without the last word."""
    return row.place.removesuffix(".weight")


def _layer(row: Difference) -> str:
    return ".".join(_place(row).split(".")[:2])


def _by(name: Callable[[Difference], str], rows: Iterable[Difference]) -> dict[str, list[Difference]]:
    """Rows by place or layer, in the order of the forward pass, which the activations are in."""
    found: dict[str, list[Difference]] = {}
    for row in rows:
        found.setdefault(name(row), []).append(row)
    return found


def _line(name: str, rows: Iterable[Difference]) -> str:
    """For each kind the row with the largest relative difference."""
    largest = {row.kind: row for row in sorted(rows, key=lambda row: row.relative)}
    return f"{name:<{NAME_WIDTH}}{''.join(_cell(largest.get(kind)) for kind in KINDS)}".rstrip()


def _cell(row: Optional[Difference]) -> str:
    text = "" if row is None else f"{row.largest:.1e} {row.relative:.1e}{'!' if row.beyond else ' '}"
    return f"{text:>{CELL_WIDTH}}"
