"""train.check_finite: skip, on several ranks with micro-batches: a step that is not finite leaves no trace."""

from __future__ import annotations

import numpy as np
import pytest

from dry_runs import recipe_for
from mindmodel.dryrun.compile import compiled
from mindmodel.dryrun.interpret import Interpreter
from mindmodel.dryrun.prove import LR, batches_of, jobs_of

WEIGHT = "layers.0.mlp.down.weight"


@pytest.fixture(scope="module")
def ranks(standin):
    """Recipe, graphs and slices of two data parallel ranks with two micro-batches."""
    model = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "ffn_size": 32, "vocab_size": 32}
    train = {"check_finite": "skip"}
    recipe = recipe_for(model, seq_len=8, sequences=4, train=train, dp=2, micro_batches=2)
    with compiled(jobs_of(recipe, "rank-"), 2) as results:
        return recipe, [rank.graph() for rank in results.values()], [rank.slices() for rank in results.values()]


def test_the_step_after_a_skipped_one_is_as_if_there_had_been_none(ranks):
    recipe, graphs, slices = ranks
    first, second, _ = ((batch.ids, batch.labels) for batch in batches_of(recipe))

    def outcome(poisoned: bool):
        interpreter = Interpreter(graphs, slices)
        for parameters in interpreter.parameters:
            parameters["num_labels"][...], parameters["lr"][...] = 32, LR
        if poisoned:
            kept = [parameters[WEIGHT].copy() for parameters in interpreter.parameters]
            for parameters in interpreter.parameters:
                parameters[WEIGHT][0, 0] = np.inf
            outputs = interpreter.run([first] * 2)
            assert not any(bool(output[2]) for output in outputs)
            for parameters, weight in zip(interpreter.parameters, kept):
                parameters[WEIGHT][...] = weight
        outputs = interpreter.run([second] * 2)
        assert all(bool(output[2]) for output in outputs)
        return interpreter.parameters

    for clean, after in zip(outcome(poisoned=False), outcome(poisoned=True)):
        assert clean.keys() == after.keys()
        for name, array in clean.items():
            np.testing.assert_array_equal(after[name], array, err_msg=name)
