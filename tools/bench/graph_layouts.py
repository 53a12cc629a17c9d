"""The layouts that bench_graph.py compiles, and the recipe of each. Imports no framework."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from mindmodel.recipe.load import load_recipe
from mindmodel.recipe.schema import Recipe

RECIPE = Path(__file__).with_name("graph.yaml")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Degrees of a mesh, and the rank that is looked at. A dp rank has one sequence for each micro-batch."""

    name: str
    dp: int
    tp: int
    pp: int = 1
    micro_batches: int = 1
    rank: int = 0
    sequence_parallel: bool = False
    recompute: str = "none"

    def recipe(self, num_layers: int, changes: Sequence[str] = ()) -> Recipe:
        """Llama 7B of so many layers, as many on each stage.

        Args:
            num_layers: a multiple of pp.
            changes: key=value, on top of everything.

        Raises:
            RecipeError: if they do not fit.
        """
        data = [change for change in changes if change.startswith("data.")]
        seq_len = load_recipe(RECIPE, data).data.seq_len
        keys = {
            **{name: getattr(self, name) for name in ("dp", "tp", "pp", "micro_batches", "recompute")},
            "sequence_parallel": str(self.sequence_parallel).lower(),
            "stages": [num_layers // self.pp] * self.pp,
        }
        layout = [f"parallel.{name}={value}" for name, value in keys.items()]
        tokens = f"train.tokens_per_step={self.dp * self.micro_batches * seq_len}"
        return load_recipe(RECIPE, [*layout, f"model.num_layers={num_layers}", tokens, *changes])


_STAGES = {"dp": 4, "tp": 4, "pp": 4, "micro_batches": 8}
LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(name="dp2tp4", dp=2, tp=4),
        Layout(name="dp2tp4-sp", dp=2, tp=4, sequence_parallel=True),
        Layout(name="dp8tp8-sp", dp=8, tp=8, sequence_parallel=True),
        Layout(name="dp4tp4pp4-first", **_STAGES),
        Layout(name="dp4tp4pp4-first-sp", **_STAGES, sequence_parallel=True),
        Layout(name="dp4tp4pp4-last", **_STAGES, rank=63),
        Layout(name="dp4tp4pp4-last-sp", **_STAGES, rank=63, sequence_parallel=True),
        Layout(name="dp2tp4-recompute", dp=2, tp=4, recompute="full"),
    )
}
