"""Arguments that several verbs share."""

from __future__ import annotations

import argparse
from typing import Callable, Mapping, Optional

from mindmodel.cli.help import HelpFormatter
from mindmodel.recipe.load import load_with_changes
from mindmodel.recipe.schema import Recipe
from mindmodel.terminal import Terminal


def add_overrides(parser: argparse.ArgumentParser, meaning: str) -> None:
    """key=value pairs, as `overrides`."""
    # without a default argparse asks for them when something else is missing
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help=meaning)


def add_recipe_arguments(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    """RECIPE, which may be left out if it is `optional`, key=value pairs, --single and --shrink."""
    nargs = "?" if optional else None
    parser.add_argument("recipe", metavar="RECIPE", nargs=nargs, help="a YAML file, such as recipes/cpu/tiny.yaml")
    add_overrides(parser, "put on top, such as train.steps=20")
    parser.add_argument("--single", action="store_true", help="all parallel degrees 1: runs on one device")
    parser.add_argument("--shrink", action="store_true", help="the same structure in small sizes")


def load_as_asked(args: argparse.Namespace, terminal: Terminal, devices: Optional[int] = None) -> Recipe:
    """The recipe of these arguments; what --single and --shrink change is said.

    Args:
        devices: as load_with_changes'.
    """
    recipe, changes = load_with_changes(
        args.recipe, args.overrides, single=args.single, shrink=args.shrink, devices=devices
    )
    for change in changes:
        terminal.say(f"changed for this machine: {change}")
    return recipe


def add_subcommands(
    parser: argparse.ArgumentParser, summaries: Mapping[str, str]
) -> dict[str, argparse.ArgumentParser]:
    """A parser for each subcommand, by name, which its summary describes; the one typed stands in `subcommand`."""
    subparsers = parser.add_subparsers(dest="subcommand", metavar=" | ".join(summaries), required=True)
    return {
        name: subparsers.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", formatter_class=HelpFormatter
        )
        for name, summary in summaries.items()
    }


def add_break_argument(parser: argparse.ArgumentParser) -> None:
    """--break PLACE, as `place`."""
    parser.add_argument(
        "--break", dest="place", metavar="PLACE", help="open pdb in the construct of a Cell, as layers.0.attention"
    )


def at_least(smallest: int) -> Callable[[str], int]:
    """An argparse type: a whole number with a lower bound."""

    def whole_number(text: str) -> int:
        value = int(text)
        if value < smallest:
            raise argparse.ArgumentTypeError(f"{value} is less than {smallest}")
        return value

    return whole_number


def number_between(smallest: float, largest: float) -> Callable[[str], float]:
    """An argparse type: a number within bounds, which are allowed themselves."""

    def number(text: str) -> float:
        value = float(text)
        if not smallest <= value <= largest:
            raise argparse.ArgumentTypeError(f"{text} is not between {smallest} and {largest}")
        return value

    return number
