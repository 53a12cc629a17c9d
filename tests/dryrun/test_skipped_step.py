"""train.check_finite: skip, on several ranks with micro-batches: a step that is not finite leaves no trace."""

from __future__ import annotations

import numpy as np
import pytest

from mindmodel.dryrun.compile import compiled
from mindmodel.dryrun.interpret import Interpreter
from mindmodel.dryrun.prove import LR, batches_of, jobs_of
from mindmodel.recipe.load import recipe_from_dict
from mindmodel.recipe.rules import with_defaults

WEIGHT = "layers.0.mlp.down.weight"


@pytest.fixture(scope="module")
def ranks(standin):
    """Recipe, graphs and slices of two data parallel ranks with two micro-batches."""
    sections = {
        "name": "skip",
        "model": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "ffn_size": 32, "vocab_size": 32},
        "data": {"source": "stdlib", "seq_len": 8, "tokenizer": "tokenizer.json"},
        "parallel": {"dp": 2, "micro_batches": 2},
        "train": {"steps": 3, "tokens_per_step": 32, "check_finite": "skip"},
    }
    recipe = with_defaults(recipe_from_dict(sections, "tests"))
    with compiled(jobs_of(recipe, "rank-"), 2) as results:
        return recipe, [rank.graph() for rank in results.values()], [rank.slices() for rank in results.values()]


def test_the_step_after_a_skipped_one_is_as_if_there_had_been_none(ranks):
    recipe, graphs, slices = ranks
    batches = batches_of(recipe)

    def outcome(poisoned: bool):
        interpreter = Interpreter(graphs, slices)
        for parameters in interpreter.parameters:
            parameters["num_labels"][...], parameters["lr"][...] = 32, LR
        if poisoned:
            kept = [parameters[WEIGHT].copy() for parameters in interpreter.parameters]
            for parameters in interpreter.parameters:
                parameters[WEIGHT][0, 0] = np.inf
            outputs = interpreter.run([(batches.ids[0], batches.labels[0])] * 2)
            assert not any(bool(output[2]) for output in outputs)
            for parameters, weight in zip(interpreter.parameters, kept):
                parameters[WEIGHT][...] = weight
        outputs = interpreter.run([(batches.ids[1], batches.labels[1])] * 2)
        assert all(bool(output[2]) for output in outputs)
        return interpreter.parameters

    for clean, after in zip(outcome(poisoned=False), outcome(poisoned=True)):
        assert clean.keys() == after.keys()
        for name, array in clean.items():
            np.testing.assert_array_equal(after[name], array, err_msg=name)
