"""docs/debugging.md: every command in it, as it stands there, on a small recipe instead of recipes/cpu/tiny.yaml."""

from __future__ import annotations

import re
import shlex

import pytest

from command import RECIPE, ROOT
from mindmodel.cli.main import parse_arguments

PAGE = (ROOT / "docs" / "debugging.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


@pytest.fixture
def folder(command):
    """With recipes, a run of 200 steps in `runs/tiny` and its Hugging Face folder."""
    recipes = command.folder / "recipes"
    (recipes / "cpu").mkdir(parents=True)
    (recipes / "cpu" / "tiny.yaml").write_text(RECIPE)
    (recipes / "llama").symlink_to(ROOT / "recipes" / "llama")
    for arguments in (("train", "recipes/cpu/tiny.yaml"), ("convert", "to-hf", "runs/tiny", "runs/tiny-hf")):
        done = command(*arguments)
        assert done.returncode == 0, done.stderr
    return command


def test_every_command_can_be_typed_and_its_recipes_are_there():
    assert len(COMMANDS) > 20
    for command in COMMANDS:
        name, verb, *arguments = shlex.split(command)
        parse_arguments(verb, arguments)
        recipes = [argument.partition(":")[0] for argument in arguments if argument.startswith("recipes/")]
        assert name == "mindmodel" and all((ROOT / recipe).is_file() for recipe in recipes)


@pytest.mark.long
def test_every_command_ends_well(folder, standin):
    failed = {}
    for line in COMMANDS:
        done = folder(*line.split()[1:], typed="c\n" * 20)
        if done.returncode:
            failed[line] = done.returncode, done.stderr[-2000:]
    assert failed == {}
