"""Arguments that several verbs share."""

from __future__ import annotations

import argparse


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, key=value pairs, --single and --shrink."""
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, such as recipes/cpu/tiny.yaml")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="put on top, such as train.steps=20")
    parser.add_argument("--single", action="store_true", help="all parallel degrees 1: runs on one device")
    parser.add_argument("--shrink", action="store_true", help="the same structure in small sizes")
