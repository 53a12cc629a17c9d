"""What a traced step is given: random tokens of the seed, or those of a step of the run's corpus."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mindmodel.data.tokens import TokenWriter
from mindmodel.debug.traces.inputs import inputs_of
from mindmodel.errors import DataError
from mindmodel.recipe.load import recipe_from_dict
from mindmodel.recipe.rules import with_defaults


@pytest.fixture
def recipe(tmp_path):
    """Two sequences of eight tokens a step; a warm-up of four steps."""
    return with_defaults(recipe_from_dict({
        "name": "tests",
        "model": {"hidden_size": 8, "num_layers": 1, "num_heads": 1, "ffn_size": 8, "vocab_size": 300},
        "data": {"source": "stdlib", "seq_len": 8, "tokenizer_vocab_size": 300},
        "train": {"steps": 9, "tokens_per_step": 16, "seed": 5},
        "optim": {"peak_lr": 1e-3, "warmup_steps": 4},
        "runtime": {"output": str(tmp_path / "run")},
    }, "tests"))


def with_seed(recipe, seed):
    return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, seed=seed))


def test_random_tokens_are_those_of_the_seed_and_labels_are_one_further(recipe):
    batch, again, other = (inputs_of(each).batch for each in (recipe, recipe, with_seed(recipe, 6)))
    assert batch.ids.shape == batch.labels.shape == (2, 8) and batch.ids.dtype == np.int32
    assert (batch.ids[:, 1:] == batch.labels[:, :-1]).all() and batch.ids.max() < 300
    assert (batch.ids == again.ids).all() and (batch.ids != other.ids).any()


def test_the_learning_rate_is_that_of_the_first_step_or_the_one_that_is_named(recipe, corpus):
    assert inputs_of(recipe).lr == pytest.approx(0.25e-3) and inputs_of(recipe, 4).lr == pytest.approx(1e-3)


@pytest.fixture
def corpus(recipe, tmp_path):
    """Of the run: tokens 0 to 255."""
    (tmp_path / "run" / "data").mkdir(parents=True)
    with TokenWriter(tmp_path / "run" / "data" / "train", vocab_size=300) as writer:
        writer.add(list(range(256)))


def test_tokens_of_a_step_are_those_that_the_run_trains_on_in_it(recipe, corpus, tmp_path):
    from mindmodel.data.loader import TrainBatches
    from mindmodel.data.tokens import TokenFile

    batches = TrainBatches(TokenFile(tmp_path / "run" / "data" / "train"), 8, seed=5)
    for step in (1, 3):
        expected, batch = batches.batch(2 * (step - 1), 2), inputs_of(recipe, step).batch
        assert (batch.ids == expected.ids).all() and (batch.labels == expected.labels).all()


def test_a_step_without_a_corpus_is_refused(recipe):
    with pytest.raises(DataError, match="data: there is no corpus, so the tokens of step 2 are not known. Train first"):
        inputs_of(recipe, 2)
