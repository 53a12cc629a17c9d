"""Between parameters and arrays: nothing is set unless all of it fits."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from mindmodel.errors import CheckpointError


@pytest.fixture
def parameters(runtime):
    from mindspore import Parameter, Tensor

    initial = {"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float32)}
    return [Parameter(Tensor(array), name=name) for name, array in initial.items()]


def test_arrays_come_back_as_they_were_set(parameters):
    from mindmodel.train.state import arrays_of, fill

    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.full(4, 0.1, ml_dtypes.bfloat16)}
    fill(parameters, arrays, "here")
    found = arrays_of(parameters)
    np.testing.assert_array_equal(found["a"], arrays["a"])
    np.testing.assert_array_equal(found["b"], arrays["b"].astype(np.float32))
    assert found["b"].dtype == np.float32


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"a": np.zeros((2, 3))}, "'b' is missing"),
        ({"a": np.zeros((2, 3)), "b": np.zeros(4), "c": np.zeros(1)}, "'c' is left over"),
        ({"a": np.zeros((3, 2)), "b": np.zeros(4)}, r"'a' is \[3, 2\], the model has \[2, 3\]"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_set(arrays, message, parameters):
    from mindmodel.train.state import arrays_of, fill

    with pytest.raises(CheckpointError, match=f"here: does not fit this recipe's model: {message}. Use the recipe"):
        fill(parameters, arrays, "here")
    np.testing.assert_array_equal(arrays_of(parameters)["b"], np.ones(4))


def test_of_many_differences_the_first_are_shown(parameters):
    from mindmodel.train.state import fill

    with pytest.raises(CheckpointError, match="'a' is missing; .*'c24' is left over; and 12 more. Use the recipe"):
        fill(parameters, {f"c{number}": np.zeros(1) for number in range(30)}, "here")
