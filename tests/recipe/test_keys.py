"""The list of keys."""

from __future__ import annotations

import dataclasses

from mindmodel.recipe.keys import all_keys, keys_table
from mindmodel.recipe.schema import SECTIONS


def test_every_key_of_the_schema_is_listed_once():
    names = [key.name for key in all_keys()]
    schema = [f"{section}.{field.name}" for section, cls in SECTIONS.items() for field in dataclasses.fields(cls)]
    assert [name for name in names if not name.startswith("model.rope_scaling.")] == schema
    assert len(names) == len(set(names))


def test_types_defaults_and_meanings_are_words():
    keys = {key.name: key for key in all_keys()}
    assert keys["train.steps"][1:3] == ("whole number, at least 1", "required")
    assert keys["parallel.dp"][1:3] == ("whole number or auto, at least 1", "default auto")
    assert keys["train.stop_at"].default == "not set"
    assert keys["optim.peak_lr"].default == "default 0.0003"
    assert keys["model.rope_scaling.type"].type == "linear or llama3"
    assert all(key.meaning for key in keys.values())


def test_the_table_fits_a_terminal():
    table = keys_table()
    assert max(map(len, table.splitlines())) <= 80
    assert "relative to the folder in which the command is typed" in table
