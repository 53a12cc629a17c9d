"""MindSpore loaded where a verb first needs it, which takes seconds. Imports no mindspore itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mindmodel.parallel.environment import prepare_environment
from mindmodel.recipe.schema import Recipe
from mindmodel.terminal import Terminal

if TYPE_CHECKING:
    from mindmodel.parallel.runtime import Runtime


def load_runtime(recipe: Recipe, purpose: str, terminal: Terminal) -> Runtime:
    """Load MindSpore in the environment that a recipe wants, and set it up.

    Args, Raises: as start_runtime.
    """
    prepare_environment(recipe.runtime)
    with terminal.loading():
        from mindmodel.parallel.runtime import start_runtime
    return start_runtime(recipe, purpose, terminal)
