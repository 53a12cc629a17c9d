"""Norms of layers: what the ranks of a layout have of the sums of squares makes up those of one device."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from mindmodel.dryrun.compile import compiled
from mindmodel.dryrun.interpret import Interpreter
from mindmodel.dryrun.prove import LR, TOLERANCE, batches_of, jobs_of, outputs_of_step, reference
from mindmodel.models.family import parameter_shapes
from mindmodel.parallel.mesh import mesh_of, stage_of
from mindmodel.parallel.plan import held_axes
from mindmodel.parallel.plans.decoder import decoder_plan
from mindmodel.recipe.schema import LogSection
from mindmodel.train.norms import Held, own_squares, parts_of


def held_of(recipe, rank: int) -> Held:
    """By the plan: a slice counts one over the number of ranks that have it."""
    mesh, plan = mesh_of(recipe.parallel), decoder_plan(recipe.model, recipe.parallel)
    stage, sharded = stage_of(rank, mesh), recipe.parallel.shard_optimizer != "none"
    pieces = {
        name: math.prod(map(mesh.degree, held_axes(plan, name, shape, mesh, sharded)))
        for name, shape in parameter_shapes(recipe.model).items() if plan.stage_of(name) == stage
    }
    seen = [part for part in parts_of(recipe.model.num_layers)[:-1] if plan.stage_of(f"{part}.") == stage]
    return Held(
        parameters={name: count / mesh.stage_size for name, count in pieces.items()},
        activations=dict.fromkeys(seen, 1 / mesh.stage_size),
    )


def squares(ranks) -> np.ndarray:
    """Sums over all ranks [parts, kinds], of one step."""
    recipe, batch = ranks[0].job.recipe, batches_of(ranks[0].job.recipe)[0]
    interpreter = Interpreter([rank.graph() for rank in ranks], [rank.slices() for rank in ranks])
    outputs = outputs_of_step(interpreter, batch, LR)
    parts = parts_of(recipe.model.num_layers)
    return sum(own_squares(output[3:], held_of(recipe, rank), parts) for rank, output in enumerate(outputs))


@pytest.mark.long
@pytest.mark.parametrize("name", ["dp2 gradients", "pp2 tp2 tokens kept"])
def test_sums_of_squares_of_all_ranks_are_those_of_one_device(standin, layouts, name):
    recipe = dataclasses.replace(layouts[name], log=LogSection(norms_every=1))
    jobs = [*jobs_of(reference(recipe), "one-"), *jobs_of(recipe, "rank-")]
    with compiled(jobs, 2) as results:
        one, *ranks = (results[job.name] for job in jobs)
        found, expected = squares(ranks), squares([one])
    assert (expected[:, :-1] > 0).all() and (expected[:-1, -1] > 0).all()
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE)
