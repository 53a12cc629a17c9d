"""YAML text to values."""

from __future__ import annotations

import pytest

from mindmodel.errors import RecipeError
from mindmodel.recipe.text import LIMIT_BYTES, parse, read_mapping, show


@pytest.mark.parametrize(
    "text, value",
    [
        ("3e-4", 3e-4),
        ("1e6", 1e6),
        ("1_048_576", 1048576),
        (".5", 0.5),
        ("-2", -2),
        ("010", 10),
        ("true", True),
        ("null", None),
        ("", None),
        ("[2, 2]", [2, 2]),
        ("{type: linear, factor: 2}", {"type": "linear", "factor": 2}),
    ],
)
def test_scalars_are_what_they_look_like(text, value):
    assert parse(text, "here") == value
    assert type(parse(text, "here")) is type(value)


@pytest.mark.parametrize("text", ["no", "on", "1:30", "2024-01-01", "none", "3e", "e4", "'3e-4'"])
def test_everything_else_is_text(text):
    assert parse(text, "here") == text.strip("'")


@pytest.mark.parametrize(
    "value", ["3e-4", "no", "true", "null", "1_0", "", "a: b", "*.txt", 1e-8, 3e-4, 1e22, 7, [1, 2], None, {"a": "1"}]
)
def test_what_is_shown_is_read_back(value):
    assert parse(show(value), "here") == value


def test_a_key_given_twice_is_refused_with_its_line():
    with pytest.raises(RecipeError, match=r"x.yaml, line 3: 'steps' is given twice. Keep one of them"):
        parse("train:\n  steps: 1\n  steps: 2\n", "x.yaml")


def test_aliases_are_refused_for_they_can_grow_without_bound():
    with pytest.raises(RecipeError, match=r"line 2: a value starts with '\*'. Put it in quotes"):
        parse("a: &x [1]\nb: *x\n", "x.yaml")


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['true']", "!!timestamp x", "!!bool x", "!mine 1"])
def test_tags_are_refused_so_that_no_objects_are_made(text):
    with pytest.raises(RecipeError, match="x.yaml, line 1: a value starts with '!'. Put it in quotes"):
        parse(text, "x.yaml")


@pytest.mark.parametrize("text", ["[" * 1000, "\0", "a: [1", "? [a]\n: 1", "9" * 9999 + "x: ["])
def test_broken_text_is_an_error_with_its_place(text):
    with pytest.raises(RecipeError, match=r"^x\.yaml"):
        parse(text, "x.yaml")


def test_a_tab_is_called_one():
    with pytest.raises(RecipeError, match=r"x.yaml, line 2: .* \(a tab\). Indent with spaces"):
        parse("train:\n\tsteps: 5\n", "x.yaml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"gone.yaml: No such file or directory. Use the path of a YAML file"):
        read_mapping(tmp_path / "gone.yaml")


def test_a_huge_file_is_not_parsed(tmp_path):
    path = tmp_path / "huge.yaml"
    path.write_bytes(b"#" * (LIMIT_BYTES + 1))
    with pytest.raises(RecipeError, match="larger than 1 MiB"):
        read_mapping(path)


def test_a_file_must_be_utf8(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes("model: é".encode("latin-1"))
    with pytest.raises(RecipeError, match="byte 7 is not UTF-8. Save the file as UTF-8"):
        read_mapping(path)


def test_a_file_must_hold_sections(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    with pytest.raises(RecipeError, match="holds no sections. Use a mapping such as 'train: {steps: 100}'"):
        read_mapping(path)
