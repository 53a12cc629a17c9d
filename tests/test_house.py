"""What holds for every file of the package. Import directions are import-linter's, in setup.cfg."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import Iterator

import pytest

import mindmodel.errors

PACKAGE = Path(mindmodel.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 600
SHAPES = re.compile(r"inputs?\b.*outputs?\b|interface:|the same", re.IGNORECASE | re.DOTALL)
"""A Cell says what goes in and comes out, or whose interface it has."""

TOLD_BY_THE_MODULE = ("add_arguments", "run")
"""Functions of a verb: its module's docstring is the help text."""


def documented(node: ast.AST, inside: str = "") -> Iterator[tuple[str, ast.AST, str]]:
    """Public classes and functions with their full names and the docstring that speaks for them."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        name = f"{inside}{child.name}"
        if child.name == "__init__":
            yield name, child, ast.get_docstring(node) or ""
        elif not child.name.startswith("_"):
            yield name, child, ast.get_docstring(child) or ""
            if isinstance(child, ast.ClassDef):
                yield from documented(child, f"{name}.")


def raised(function: ast.AST) -> set[str]:
    """Names of the package's own errors that a function's own body raises."""
    calls = [node.exc for node in ast.walk(function) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
    return {name for name in names if hasattr(mindmodel.errors, name)}


def _is_rule(node: ast.AST) -> bool:
    """Whether it is a rule of a recipe: its name is what it says."""
    returns = node.returns if isinstance(node, ast.FunctionDef) else None
    return returns is not None and "Iterator[Fault]" in ast.unparse(returns)


@functools.cache
def all_documented() -> list[tuple[str, ast.AST, str]]:
    found = []
    for path in FILES:
        where = path.relative_to(PACKAGE.parent)
        for name, node, text in documented(ast.parse(path.read_text(encoding="utf-8"))):
            if not (_is_rule(node) or where.parts[1] == "cli" and name in TOLD_BY_THE_MODULE):
                found.append((f"{where}: {name}", node, text))
    return found


def test_what_is_public_is_explained():
    compiled = ("construct", "bprop")  # a Cell's docstring says what goes in and comes out
    silent = [name for name, _, text in all_documented() if not text and not name.endswith(compiled)]
    assert silent == []


def test_a_docstring_names_the_errors_that_are_raised():
    functions = [(name, node, text) for name, node, text in all_documented() if not isinstance(node, ast.ClassDef)]
    missing = [
        f"{name}: {error}" for name, node, text in functions for error in raised(node)
        if not ("Raises:" in text and error in text.partition("Raises:")[2])
    ]
    assert missing == []


def test_a_cell_says_what_goes_in_and_what_comes_out():
    cells = [
        (name, text) for name, node, text in all_documented() if isinstance(node, ast.ClassDef)
        and any(isinstance(child, ast.FunctionDef) and child.name == "construct" for child in node.body)
    ]
    assert len(cells) > 20
    assert [name for name, text in cells if not SHAPES.search(text)] == []


@pytest.mark.parametrize("room", sorted({path.relative_to(PACKAGE).parts[0] for path in FILES}))
def test_no_file_hides_a_second_job(room):
    long = [path for path in FILES if path.relative_to(PACKAGE).parts[0] == room]
    assert [path.name for path in long if len(path.read_text(encoding="utf-8").splitlines()) > MAX_LINES] == []
