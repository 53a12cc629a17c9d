"""Held-out loss: batches shared out over ranks, or computed by all of them together."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mindmodel.data.loader import Batch


class Four:
    """Rank 1 of four; each says as much as this one, times its number."""

    rank, count = 1, 4

    def gather(self, *values):
        return np.outer(np.arange(4.0), values)


@pytest.fixture
def batches():
    ids = np.zeros((1, 3), np.int32)
    return [Batch(ids=ids, labels=np.array([[number, 1, -100]], np.int32)) for number in range(5)]


def entropy_alone(ids, labels):
    """As the forward pass of a partitioned step."""
    return labels.sum() + 100


def pair(ids, labels):
    """As DecoderLoss."""
    return None, entropy_alone(ids, labels)


@pytest.mark.parametrize("network", [entropy_alone, pair])
def test_together_every_rank_computes_all_and_the_last_has_the_sum(runtime, batches, network):
    from mindmodel.train.evaluate import evaluate

    found = evaluate(network, batches, Four(), together=True)
    assert found.tokens == 3 * 10 and found.loss == pytest.approx((0 + 1 + 2 + 3 + 4 + 5) / 10)


def test_else_a_rank_has_its_share(runtime, batches):
    from mindmodel.train.evaluate import evaluate

    found = evaluate(pair, batches, Four())
    assert found.tokens == (0 + 1 + 2 + 3) * 2 and found.loss == pytest.approx((1 + 1) / 2)


@pytest.mark.parametrize(
    "tied, parallel, why",
    [
        (False, {"pp": 2}, ""),
        (True, {"pp": 1}, ""),
        (True, {"pp": 2}, "the last of several stages has no tied embedding"),
        (False, {"pp": 2, "interleave": 2}, "MindSpore compiles no forward pass of interleaved stages"),
    ],
)
def test_what_cannot_be_evaluated_while_it_trains(runtime, small_recipe, tied, parallel, why):
    from mindmodel.train.evaluate import no_evaluation

    model = dataclasses.replace(small_recipe.model, tied_embeddings=tied)
    layout = dataclasses.replace(small_recipe.parallel, **parallel)
    found = no_evaluation(dataclasses.replace(small_recipe, model=model, parallel=layout))
    assert found.startswith(why) and bool(found) == bool(why)
