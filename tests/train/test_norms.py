"""Norms of the parts of a model, from what a step gives."""

from __future__ import annotations

import numpy as np
import pytest

from mindmodel.train.norms import Held, norm_columns, own_squares, part_of, parts_of

NAMES = ["embedding.weight", "layers.0.attention.qkv.weight", "layers.0.mlp.down.weight", "layers.11.mlp.down.weight"]


def test_a_parameter_belongs_to_a_part():
    assert [part_of(name) for name in [*NAMES, "norm.weight", "head.weight"]] == [
        "embedding", "layers.0", "layers.0", "layers.11", "norm", "head"
    ]


def test_the_squares_of_a_part_are_put_together_from_those_of_its_parameters():
    held = Held(parameters=dict.fromkeys(NAMES[:3], 1.0), activations={"layers.0": 1.0, "norm": 1.0})
    outputs = np.array([[1, 9, 16], [25, 36, 64], [0, 0, 1]], np.float32), np.array([3, 4], np.float32)
    np.testing.assert_array_equal(
        own_squares(outputs, held, parts_of(1)), [[1, 25, 0, 0], [25, 100, 1, 3], [0, 0, 0, 4], [0, 0, 0, 0]]
    )


def test_ranks_that_hold_the_same_share_it_and_copies_of_other_stages_do_not_count():
    held = Held(parameters={"norm.weight": 0.25, "head.weight": 0.0}, activations={"norm": 0.5})
    outputs = np.array([[4, np.nan], [8, np.inf], [12, 1]], np.float32), np.array([6], np.float32)
    own = own_squares(outputs, held, parts_of(0))
    np.testing.assert_array_equal(own, [[0, 0, 0, 0], [1, 2, 3, 3], [0, 0, 0, 0]])


def test_columns_are_norms_and_an_activation_s_is_that_of_one_token():
    squares = np.array([[1, 25, 0, 4], [25, 100, 1, 16], [0, 0, 0, 36], [4, 19, 0, 0]], float)
    assert norm_columns(squares, parts_of(1), grad_norm=6, num_tokens=4) == {
        "norms/embedding/weight": 1, "norms/embedding/grad": 2.5, "norms/embedding/update": 0,
        "norms/layers.0/weight": 5, "norms/layers.0/grad": 5, "norms/layers.0/update": 1,
        "norms/head/weight": 2, "norms/head/grad": pytest.approx(4.75**0.5), "norms/head/update": 0,
        "norms/embedding/activation": 1, "norms/layers.0/activation": 2, "norms/norm/activation": 3,
    }


def test_a_gradient_may_be_zero():
    assert norm_columns(np.array([[1.0, 0, 0, 0]]), ["head"], 0.0, 1)["norms/head/grad"] == 0


@pytest.mark.parametrize("square", [np.inf, np.nan])
def test_what_is_not_finite_does_not_become_so(square):
    assert not np.isfinite(list(norm_columns(np.full((1, 4), square), ["head"], square, 1).values())).any()
