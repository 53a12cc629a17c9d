"""Learning rates at the places where a schedule bends."""

from __future__ import annotations

import math

import pytest

from mindmodel.recipe.schema import OptimSection
from mindmodel.train.schedule import learning_rate


def rate(schedule: str, step: int, warmup_steps: int = 10, steps: int = 110) -> float:
    optim = OptimSection(peak_lr=1.0, final_lr_ratio=0.1, warmup_steps=warmup_steps, schedule=schedule)
    return learning_rate(optim, steps, step)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_warm_up_is_linear_and_ends_at_the_peak(schedule):
    assert [rate(schedule, step) for step in (1, 5, 10)] == pytest.approx([0.1, 0.5, 1.0])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_the_last_step_has_the_final_ratio(schedule):
    assert rate(schedule, 110) == pytest.approx(0.1)


def test_half_way_down():
    assert rate("cosine", 60) == pytest.approx(0.55)
    assert rate("linear", 60) == pytest.approx(0.55)
    assert rate("cosine", 35) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))


def test_wsd_is_flat_until_the_last_fifth():
    assert [rate("wsd", step) for step in (11, 50, 88)] == [1.0, 1.0, 1.0]
    assert rate("wsd", 99) == pytest.approx(0.55)


def test_constant_stays():
    assert rate("constant", 110) == 1.0


def test_without_warm_up_the_first_step_is_near_the_peak():
    assert rate("cosine", 1, warmup_steps=0) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_a_run_of_one_step_works(schedule):
    assert 0 < rate(schedule, 1, warmup_steps=0, steps=1) <= 1
