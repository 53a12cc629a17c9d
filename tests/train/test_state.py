"""Between parameters and arrays: nothing is set unless all of it fits."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from crew import held, save_by_all

from mindmodel.checkpoint.load import open_checkpoint
from mindmodel.checkpoint.shares import Placement
from mindmodel.errors import CheckpointError
from mindmodel.parallel.mesh import Mesh


@pytest.fixture
def parameters(runtime):
    from mindspore import Parameter, Tensor

    initial = {"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float32)}
    return [Parameter(Tensor(array), name=name) for name, array in initial.items()]


def content(parameters):
    return {parameter.name: parameter.asnumpy() for parameter in parameters}


def test_arrays_come_back_as_they_were_set(parameters):
    from mindmodel.train.state import fill

    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.full(4, 0.1, ml_dtypes.bfloat16)}
    fill(parameters, arrays, "here")
    found = content(parameters)
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
    from mindmodel.train.state import fill

    with pytest.raises(CheckpointError, match=f"here: does not fit this recipe's model: {message}. Use the recipe"):
        fill(parameters, arrays, "here")
    np.testing.assert_array_equal(content(parameters)["b"], np.ones(4))


def test_all_differences_are_in_the_message(parameters):
    from mindmodel.train.state import fill

    with pytest.raises(CheckpointError, match="'a' is missing; 'b' is missing; 'c0' is left over; .*'c9' is left"):
        fill(parameters, {f"c{number}": np.zeros(1) for number in range(30)}, "here")


def test_a_tensor_of_several_slices_is_set_from_them(parameters, tmp_path):
    from mindmodel.train.state import fill

    rows = {
        "a": Placement(shape=(2, 3), dtype="float32", axes=("tp", None), stage=0),
        "b": Placement(shape=(4,), dtype="float32", axes=("tp",), stage=0),
    }
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(4, dtype=np.float32)}
    path = save_by_all(tmp_path, 1, held(arrays, rows, Mesh(tp=2)), rows, Mesh(tp=2))
    fill(parameters, open_checkpoint(path).weights(), "here")
    for name, array in content(parameters).items():
        np.testing.assert_array_equal(array, arrays[name])


def test_a_parameter_is_fetched_when_it_is_read(parameters):
    from mindmodel.train.state import tensors_of

    lazy = tensors_of(parameters)["a"]
    assert (lazy.shape, lazy.dtype) == ((2, 3), np.float32)
    np.testing.assert_array_equal(lazy.read(), np.zeros((2, 3), np.float32))
