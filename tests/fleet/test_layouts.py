"""Layouts near a recipe's that fit."""

from __future__ import annotations

import dataclasses

import pytest

from dry_runs import recipe_for
from mindmodel.fleet.layouts import fitting_layouts, highest_estimate
from mindmodel.fleet.memory import estimate_memory
from mindmodel.recipe.rules import faults_of

GIB = 2**30


@pytest.fixture
def recipe():
    """7B over 8 devices, 16 sequences a rank in one micro-batch: far too many."""
    model = {"hidden_size": 4096, "num_layers": 32, "num_heads": 32, "ffn_size": 11008, "vocab_size": 32000}
    train = {"compute_dtype": "bfloat16"}
    return recipe_for(model, seq_len=4096, sequences=32, train=train, dp=2, tp=4, shard_optimizer="states")


def test_the_nearest_layouts_fit_and_keep_the_rules(recipe):
    assert highest_estimate(recipe).total > 58 * GIB
    found = fitting_layouts(recipe, 8, 50 * GIB)
    assert 1 < len(found) <= 3
    for layout in found:
        assert layout.peak.total == highest_estimate(layout.recipe).total <= 50 * GIB
        assert faults_of(layout.recipe) == []


def test_one_key_is_changed_before_two_and_those_that_cost_least_speed_first(recipe):
    found = fitting_layouts(recipe, 8, 50 * GIB)
    assert found[0].changes == ("parallel.micro_batches=4",)
    assert len(found[0].changes) <= len(found[-1].changes)


def test_tokens_that_are_kept_are_gathered_again_where_that_is_enough(recipe):
    keys = {"micro_batches": 16, "sequence_parallel": True, "gathered_tokens": "kept"}
    keeps = dataclasses.replace(recipe, parallel=dataclasses.replace(recipe.parallel, **keys))
    found = fitting_layouts(keeps, 8, highest_estimate(keeps).total - GIB)
    assert ("parallel.gathered_tokens=again",) in [layout.changes for layout in found]


def test_no_layout_changes_a_key_that_another_leaves(recipe):
    found = fitting_layouts(recipe, 8, 50 * GIB, limit=4)
    keys = [{change.partition("=")[0] for change in layout.changes} - {"parallel.dp"} for layout in found]
    assert not any(fewer <= more for fewer in keys for more in keys if fewer is not more)


def test_a_layout_that_fits_is_its_own_nearest(recipe):
    assert fitting_layouts(recipe, 8, 10_000 * GIB, limit=1)[0].changes == ()


def test_where_nothing_fits_there_is_no_layout(recipe):
    assert fitting_layouts(recipe, 8, GIB) == ()


def test_dp_follows_from_the_other_degrees(recipe):
    more = fitting_layouts(recipe, 16, 10_000 * GIB, limit=1)[0]
    assert (more.recipe.parallel.dp, more.changes) == (4, ("parallel.dp=4",))


def test_the_rank_that_needs_most_decides(recipe):
    pipeline = dataclasses.replace(recipe.parallel, dp=1, pp=2, micro_batches=4, shard_optimizer="none")
    staged = dataclasses.replace(recipe, parallel=pipeline)
    ranks = [estimate_memory(staged, rank).total for rank in range(8)]
    assert highest_estimate(staged).total == max(ranks)
