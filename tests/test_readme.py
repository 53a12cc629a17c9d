"""What the README tells a newcomer to type can be typed. `.ci/run` runs the same lines for real."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path

import pytest

from mindmodel.cli.main import VERBS, parse_arguments

ROOT = Path(__file__).parents[1]


def commands() -> list[str]:
    spec = importlib.util.spec_from_file_location("readme_commands", ROOT / "tools" / "readme_commands.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.commands()


MINDMODEL = [command for command in commands() if command.startswith("mindmodel ")]


def test_the_first_training_command_stands_before_line_50():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert next(number for number, line in enumerate(lines, 1) if "mindmodel train" in line) < 50


def test_two_commands_set_everything_up_in_environments_of_their_own():
    first, second = [command for command in commands() if command.startswith("python3 -m venv")]
    assert first.endswith(".venv/bin/mindmodel train recipes/cpu/tiny.yaml")
    assert second.endswith(".venv-test/bin/python -m pytest")


def test_no_command_is_of_another_kind():
    others = [command for command in commands() if not command.startswith(("mindmodel ", "python3 -m venv"))]
    assert others == ["source .venv/bin/activate"]


def test_every_verb_has_a_command():
    assert {shlex.split(command)[1] for command in MINDMODEL} == set(VERBS)


@pytest.mark.parametrize("command", MINDMODEL)
def test_a_command_has_arguments_that_its_verb_takes(command):
    _, verb, *arguments = shlex.split(command)
    args = parse_arguments(verb, arguments)
    if getattr(args, "recipe", None):
        assert (ROOT / args.recipe).is_file()
