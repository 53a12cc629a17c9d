"""What the first hour on a chip tells to type can be typed, and what it says of CANN is what doctor checks."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from mindmodel import cann
from mindmodel.cli.main import VERBS, parse_arguments
from mindmodel.recipe.load import load_with_changes

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "first_hour_on_a_chip.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line.removeprefix("GLOG_v=2 ") for block in BLOCKS for line in block.splitlines()]
MINDMODEL = [command for command in COMMANDS if command.startswith("mindmodel ")]


@pytest.mark.parametrize("command", MINDMODEL)
def test_a_command_loads_its_recipe_with_its_values(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, verb, *arguments = shlex.split(command)
    if verb in VERBS:
        parse_arguments(verb, arguments)
    values = [argument for argument in arguments if "=" in argument]
    recipe = next((argument for argument in arguments if argument.endswith(".yaml")), None)
    if recipe is not None:
        load_with_changes(recipe, values)


def test_every_file_it_links_to_is_there():
    links = re.findall(r"\]\(([^)]+)\)", PAGE)
    assert links and all((ROOT / "docs" / link).is_file() for link in links)


def test_it_names_the_versions_of_cann_that_are_accepted():
    text = " ".join(PAGE.split())
    accepted = ", ".join(cann.ACCEPTED[:-1])
    assert f"MindSpore {cann.MINDSPORE} accepts CANN {accepted} and {cann.ACCEPTED[-1]}" in text
    assert f"wheel are built with {cann.BUILT_WITH}" in text
