"""How the state of a run lies over the mesh of its recipe: from the plan's tables alone, without MindSpore."""

from __future__ import annotations

from typing import Mapping

from mindmodel.checkpoint.shares import Placement
from mindmodel.models.family import parameter_shapes
from mindmodel.parallel.mesh import mesh_of
from mindmodel.parallel.plan import held_axes
from mindmodel.parallel.plans.decoder import decoder_plan
from mindmodel.recipe.schema import Recipe

MOMENTS = ("first_moment", "second_moment")
SCALARS = ("beta1_power", "beta2_power")
FLOAT32 = "float32"


def weight_placements(recipe: Recipe) -> dict[str, Placement]:
    """Of all parameters, by name.

    Args:
        recipe: with `model.vocab_size` and all degrees filled in.
    """
    mesh, plan = mesh_of(recipe.parallel), decoder_plan(recipe.model, recipe.parallel)
    sharded = recipe.parallel.shard_optimizer != "none"
    return {
        name: Placement(
            shape=shape,
            dtype=FLOAT32,
            axes=held_axes(plan, name, shape, mesh, sharded),
            stage=plan.stage_of(name),
        )
        for name, shape in parameter_shapes(recipe.model).items()
    }


def optimizer_placements(weights: Mapping[str, Placement]) -> dict[str, Placement]:
    """Of AdamW's state, by name: moments as the parameters; its scalars are everywhere."""
    moments = {f"{moment}.{name}": placement for moment in MOMENTS for name, placement in weights.items()}
    scalar = Placement(shape=(), dtype=FLOAT32, axes=(), stage=None)
    return {**moments, **dict.fromkeys(SCALARS, scalar)}
