"""Which step of a run is looked into, and runs that cannot be; nothing is computed."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from mindmodel.debug.nan.in_run import find_nan, step_to_look_into
from mindmodel.errors import CheckpointError
from mindmodel.recipe.dump import recipe_to_yaml
from mindmodel.terminal import Terminal


def rows(*losses):
    return [{"from_step": 0}, *({"step": step, "loss": loss, "grad_norm": 1.0} for step, loss in enumerate(losses, 1))]


@pytest.mark.parametrize("losses, step", [
    ((5.0, 4.0), 2),
    ((5.0, 4.0, None), 3),
    ((5.0, None, None, None), 2),
    ((5.0, None, 4.0, None, None, 3.0, 2.0), 4),
    ((None, None), 1),
])
def test_the_first_of_the_last_steps_that_are_not_finite(losses, step):
    assert step_to_look_into(rows(*losses), Path("run")) == step


def test_a_gradient_alone_may_be_what_is_not_finite():
    written = rows(5.0, 4.0, 3.0)
    written[2]["grad_norm"] = None
    assert step_to_look_into(written, Path("run")) == 2


@pytest.fixture
def run(tmp_path, small_recipe):
    (tmp_path / "recipe.yaml").write_text(recipe_to_yaml(small_recipe))
    return tmp_path


@pytest.mark.parametrize("step, message", [
    (None, "no step is written down in metrics.jsonl. Name one: --step N."),
    (2, "step 2 is beyond the run: it has 1 steps."),
])
def test_a_step_that_is_not_there_is_refused(run, step, message):
    with pytest.raises(CheckpointError) as caught:
        find_nan(run, step, Terminal(io.StringIO()))
    assert str(caught.value) == f"{run}: {message}"
