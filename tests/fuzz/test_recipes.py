"""A recipe that is nearly right is taken or refused, whatever stands in it; so is a layout."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from damage import ODD, damaged, damaged_bytes, files_in, outcome
from mindmodel.errors import LayoutError
from mindmodel.fleet.collectives import collectives_of
from mindmodel.fleet.memory import estimate_memory
from mindmodel.parallel.mesh import mesh_of
from mindmodel.recipe.dump import recipe_to_dict, recipe_to_yaml
from mindmodel.recipe.load import load_recipe
from mindmodel.recipe.rules import resolve_degrees
from runs import make_recipe

RECIPE = make_recipe(Path("runs/tiny"), vocab_size=300)
TEXT = recipe_to_yaml(RECIPE)
SECTIONS = {name: values for name, values in recipe_to_dict(RECIPE).items() if isinstance(values, dict)}
KEYS = [f"{name}.{key}" for name, values in SECTIONS.items() for key in values]


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def shown(folder: Path, content: bytes, *arguments: str) -> None:
    """Show a recipe; one that is taken says the same when it is read again."""
    path = folder / "recipe.yaml"
    path.write_bytes(content)
    code, _ = outcome("recipe", path, *arguments)
    assert files_in(folder) == {"recipe.yaml": content}
    if code == 0 and not arguments:
        recipe = load_recipe(path)
        path.write_text(recipe_to_yaml(recipe))
        assert load_recipe(path) == recipe


@given(values=damaged(recipe_to_dict(RECIPE)))
def test_values(folder, values):
    shown(folder, yaml.safe_dump(values, allow_unicode=False).encode())


@given(content=damaged_bytes(TEXT.encode()))
def test_text(folder, content):
    shown(folder, content)


@given(key=st.sampled_from(KEYS) | st.text(max_size=12), value=ODD)
def test_keys_on_the_command_line(folder, key, value):
    shown(folder, TEXT.encode(), f"{key}={value}")


DEGREE = st.sampled_from([1, 2, 2, 2, 4, 3, "auto"])
ODD_DEGREES = st.dictionaries(
    st.sampled_from(["dp", "tp", "pp", "cp", "micro_batches", "interleave"]),
    st.sampled_from([0, -1, 1, 5, 64, 10**6, 10**30]),
    max_size=1,
)


def held_by_each_rank(path: Path, arguments: list[str]) -> None:
    """The closed forms know every layout that is taken."""
    recipe = load_recipe(path, arguments)
    try:
        recipe = resolve_degrees(recipe, 16 if "auto" in str(recipe.parallel) else mesh_of(recipe.parallel).num_devices)
    except LayoutError:
        return
    for rank in {0, mesh_of(recipe.parallel).num_devices - 1}:
        assert estimate_memory(recipe, rank).total > 0
        assert all(total.bytes > 0 and total.count > 0 for total in collectives_of(recipe, rank))


@given(
    degrees=st.fixed_dictionaries({}, optional={axis: DEGREE for axis in ("dp", "tp", "pp", "cp")}),
    odd=ODD_DEGREES,
    words=st.fixed_dictionaries({}, optional={
        "micro_batches": st.sampled_from([1, 2, 8]),
        "interleave": st.sampled_from([1, 1, 2]),
        "sequence_parallel": st.sampled_from(["true", "false"]),
        "shard_optimizer": st.sampled_from(["none", "states", "gradients", "parameters"]),
        "recompute": st.sampled_from(["none", "selective", "full"]),
        "reduce_dtype": st.sampled_from(["float32", "compute"]),
    }),
)
def test_layouts(folder, degrees, odd, words):
    path = folder / "recipe.yaml"
    path.write_text(TEXT)
    keys = {**degrees, **words, **odd}
    arguments = [f"parallel.{key}={value}" for key, value in keys.items()]
    arguments += ["train.tokens_per_step=4096", "runtime.device=ascend"]
    arguments += ["model.num_layers=8", "model.num_heads=8", "model.num_kv_heads=8"]
    code, _ = outcome("recipe", path, *arguments)
    if code == 0:
        held_by_each_rank(path, arguments)
