"""Every recipe that is shipped can be used, and small on one device."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mindmodel.fleet.layouts import highest_estimate
from mindmodel.recipe.dump import recipe_to_yaml
from mindmodel.recipe.estimate import estimate, known_vocab_size
from mindmodel.recipe.load import load_recipe
from mindmodel.recipe.rules import resolve_degrees
from mindmodel.recipe.schema import AXES, Recipe
from mindmodel.recipe.text import read_mapping
from mindmodel.terminal import quantity

USABLE_BYTES = 59_392 * 2**20
"""Of a chip with 64 GiB."""

FOLDER = Path(__file__).parents[2] / "recipes"
FILES = sorted(path for path in FOLDER.rglob("*.yaml") if not path.stem.endswith("_model"))
BASES = sorted(FOLDER.rglob("*_model.yaml"))
ROW = re.compile(
    r"^\| \[(.+?)\]\((.+?)\) \| (.+?) \| (.+?) \| (?:a laptop|(\d+) chips) \| (.+?) \| (.+) \|$", re.MULTILINE
)
ROWS = ROW.findall((FOLDER / "README.md").read_text())


def name(path: Path) -> str:
    return str(path.relative_to(FOLDER).with_suffix(""))


def need(recipe: Recipe):
    vocab_size = known_vocab_size(recipe)
    assert vocab_size is not None
    return estimate(recipe, vocab_size)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_it_loads_and_its_resolved_form_reads_back_equal(path, tmp_path):
    recipe = load_recipe(path)
    (tmp_path / "recipe.yaml").write_text(recipe_to_yaml(recipe))
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize("path", FILES, ids=name)
def test_small_on_one_device_it_fits_a_laptop(path):
    recipe = resolve_degrees(load_recipe(path, single=True, shrink=True), 1)
    assert need(recipe).memory_bytes < 2**28
    assert recipe.train.steps <= 20


@pytest.mark.parametrize("path", FILES, ids=name)
def test_small_in_its_own_layout_it_passes_the_rules(path):
    assert load_recipe(path, shrink=True).parallel.tp == load_recipe(path).parallel.tp


@pytest.mark.parametrize("path", BASES, ids=name)
def test_a_base_holds_an_architecture_only_and_some_recipe_uses_it(path):
    assert set(read_mapping(path)) == {"model"}
    assert any(read_mapping(user).get("base") == path.name for user in path.parent.glob("*.yaml"))


def test_the_table_names_every_recipe_once():
    assert sorted(row[0] for row in ROWS) == [name(path) for path in FILES]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_table_tells_parameters_tokens_and_a_number_of_chips_that_fits(row):
    _, file, parameters, tokens, chips, layout, _ = row
    recipe = load_recipe(FOLDER / file)
    assert (parameters, tokens) == (quantity(need(recipe).parameters.total), quantity(need(recipe).tokens))
    parallel = resolve_degrees(recipe, int(chips or 1)).parallel
    degrees = [f"{name} {getattr(parallel, name)}" for name in AXES if getattr(parallel, name) > 1]
    assert layout == (" ".join(degrees) or "one device")


@pytest.mark.parametrize("row", [row for row in ROWS if row[4]], ids=lambda row: row[0])
def test_a_name_tells_the_number_of_chips_where_a_size_has_several(row):
    number = re.search(r"_(\d+)$", row[0])
    assert number is None or number[1] == row[4]


@pytest.mark.parametrize("row", [row for row in ROWS if row[4]], ids=lambda row: row[0])
def test_it_fits_its_chips_with_a_tenth_of_the_memory_left(row):
    recipe = resolve_degrees(load_recipe(FOLDER / row[1]), int(row[4]))
    needed = highest_estimate(recipe).total
    assert needed < 0.9 * USABLE_BYTES
    assert f"{needed / 2**30:.0f} GiB a chip estimated" in row[6]
