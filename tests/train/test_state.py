"""Between parameters and arrays: nothing is set unless all of it fits."""

from __future__ import annotations

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from crew import held, save_by_all
from mindmodel.checkpoint.blocks import Block
from mindmodel.checkpoint.load import open_checkpoint
from mindmodel.checkpoint.shares import Placement
from mindmodel.errors import CheckpointError, LayoutError
from mindmodel.parallel.mesh import Mesh
from mindmodel.recipe.rules import with_defaults


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


class Cut:
    """A parameter as MindSpore has cut it."""

    def __init__(self, name, shape, shared=False):
        self.name, self.shape = name, shape
        self.param_info = SimpleNamespace(is_pipeline_shared_param=shared)


@pytest.mark.parametrize(
    "parameters, in_graph, message",
    [
        ([Cut("a", (2, 4))], "ab", r"'a' is \(2, 4\), by the plan \(2, 2\); 'b' is None, by the plan \(3,\)"),
        ([Cut("a", (2, 2)), Cut("b", (3,)), Cut("c", (1,))], "abc", r"'c' is \(1,\), by the plan None"),
        ([Cut("a", (2, 2)), Cut("b", (3,))], "a", r"'b' is None, by the plan \(3,\)"),
    ],
)
def test_a_cut_that_the_plan_does_not_know_is_refused(runtime, parameters, in_graph, message):
    from mindmodel.train.state import _refuse_other_cuts

    with pytest.raises(LayoutError, match=f"rank 3: .* otherwise than the plan: {message}. Mend the ParameterRules"):
        _refuse_other_cuts(parameters, {"a": (2, 2), "b": (3,)}, in_graph, 3)


def test_other_stages_and_the_copy_of_a_tied_embedding_are_not_held(runtime):
    from mindmodel.train.state import _refuse_other_cuts

    parameters = [Cut("a", (2, 2)), Cut("table", (9, 9), shared=True), Cut("of another stage", (5,))]
    _refuse_other_cuts(parameters, {"a": (2, 2)}, ("a", "table"), 0)


def test_fresh_weights_are_the_same_block_by_block(runtime, small_recipe):
    from mindmodel.train.state import fresh_weights

    weights = fresh_weights(with_defaults(small_recipe))
    whole = weights["embedding.weight"]
    block = Block(offset=(150, 4), shape=(150, 4))
    np.testing.assert_array_equal(weights.block("embedding.weight", block), whole[150:, 4:], strict=True)
    assert whole.std() > 0 and (weights["norm.weight"] == 1).all() and len(weights) == len(set(weights))
