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


def test_the_norms_of_a_part_are_put_together_from_those_of_its_parameters():
    parameters = np.array([[1, 3, 4, 2], [5, 6, 8, 7], [0, 0, 1, 0]], np.float32)
    columns = norm_columns([parameters], NAMES, num_tokens=1)
    assert columns == {
        "norms/embedding/weight": 1, "norms/embedding/grad": 5, "norms/embedding/update": 0,
        "norms/layers.0/weight": 5, "norms/layers.0/grad": 10, "norms/layers.0/update": 1,
        "norms/layers.11/weight": 2, "norms/layers.11/grad": 7, "norms/layers.11/update": 0,
    }


def test_an_activation_s_norm_is_that_of_one_token():
    columns = norm_columns([np.ones((3, 1)), np.array([4.0, 16.0, 36.0])], ["head.weight"], num_tokens=4)
    assert {name: value for name, value in columns.items() if name.endswith("activation")} == {
        "norms/embedding/activation": 1, "norms/layers.0/activation": 2, "norms/norm/activation": 3,
    }


def test_what_is_not_finite_stays_so():
    assert norm_columns([np.full((3, 1), np.inf)], ["head.weight"], 1)["norms/head/grad"] == np.inf
    assert np.isnan(norm_columns([np.full((3, 1), np.nan)], ["head.weight"], 1)["norms/head/grad"])
    large = [np.full((3, 1), 1e30, np.float32)]
    assert norm_columns(large, ["head.weight"], 1)["norms/head/grad"] == pytest.approx(1e30)
