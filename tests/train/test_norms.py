"""Norms of the parts of a model, from what a step gives."""

from __future__ import annotations

import numpy as np
import pytest

from mindmodel.train.norms import norm_columns, part_of

NAMES = ["embedding.weight", "layers.0.attention.qkv.weight", "layers.0.mlp.down.weight", "layers.11.mlp.down.weight"]


def test_a_parameter_belongs_to_a_part():
    assert [part_of(name) for name in [*NAMES, "norm.weight", "head.weight"]] == [
        "embedding", "layers.0", "layers.0", "layers.11", "norm", "head"
    ]


def test_the_norms_of_a_part_are_put_together_from_the_squares_of_its_parameters():
    squares = np.array([[1, 9, 16, 4], [25, 36, 64, 19], [0, 0, 1, 0]], np.float32)
    assert norm_columns([squares], NAMES, grad_norm=6, num_tokens=1) == {
        "norms/embedding/weight": 1, "norms/embedding/grad": 2.5, "norms/embedding/update": 0,
        "norms/layers.0/weight": 5, "norms/layers.0/grad": 5, "norms/layers.0/update": 1,
        "norms/layers.11/weight": 2, "norms/layers.11/grad": pytest.approx(4.75**0.5), "norms/layers.11/update": 0,
    }


def test_a_gradient_may_be_zero():
    assert norm_columns([np.zeros((3, 1), np.float32)], ["head.weight"], 0.0, 1)["norms/head/grad"] == 0


def test_an_activation_s_norm_is_that_of_one_token():
    columns = norm_columns([np.ones((3, 1)), np.array([4.0, 16.0, 36.0])], ["head.weight"], 1.0, num_tokens=4)
    assert {name: value for name, value in columns.items() if name.endswith("activation")} == {
        "norms/embedding/activation": 1, "norms/layers.0/activation": 2, "norms/norm/activation": 3,
    }


@pytest.mark.parametrize("square", [np.inf, np.nan])
def test_what_is_not_finite_does_not_become_so(square):
    columns = norm_columns([np.full((3, 1), square, np.float32)], ["head.weight"], square, 1)
    assert not np.isfinite(list(columns.values())).any()
