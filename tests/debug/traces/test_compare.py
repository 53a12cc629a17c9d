"""Where two traces part: measured place by place against rounding and the differences of a place's inputs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from made_traces import changed, made_trace
from mindmodel.data.loader import Batch
from mindmodel.debug.traces.compare import compare_traces
from mindmodel.debug.traces.trace import KINDS, flow
from mindmodel.errors import TraceError

TRACE = made_trace()


def noisy(trace, share: float, first: str = "embedding", seed: int = 1):
    """Activations with noise of that share of their size, from a place on."""
    random, arrays, begun = np.random.default_rng(seed), dict(trace.tensors["activation"]), False
    for place, array in arrays.items():
        begun = begun or place == first
        if begun:
            noise = random.standard_normal(array.shape).astype(np.float32)
            arrays[place] = (array.astype(np.float32) * (1 + share * noise)).astype(array.dtype)
    return dataclasses.replace(trace, tensors={**trace.tensors, "activation": arrays})


def test_a_trace_agrees_with_itself_at_every_place():
    comparison = compare_traces(TRACE, made_trace())
    assert comparison.first is None and comparison.left_out == ()
    assert all(row.largest == row.relative == row.typical == 0 for row in comparison.rows)
    assert len(comparison.rows) == sum(len(TRACE.tensors[kind]) for kind in KINDS) + 2


def test_rows_are_in_the_order_in_which_a_step_computes():
    places = [(row.kind, row.place) for row in compare_traces(TRACE, made_trace()).rows]
    forward = list(flow(2))
    assert [place for kind, place in places if kind == "activation"] == [*forward, "loss"]
    assert [place for kind, place in places if kind == "activation_grad"] == forward[-2::-1]
    assert [place for kind, place in places if kind == "weight_grad"][-2:] == ["embedding.weight", "grad_norm"]
    assert [kind for kind, _ in places] == sorted((kind for kind, _ in places), key=KINDS.index)


@pytest.mark.parametrize("first", ["embedding", "layers.0.attention.out", "layers.1.mlp_norm", "layers.1", "norm"])
def test_the_first_place_that_differs_is_named_though_all_behind_it_differ_too(first):
    comparison = compare_traces(TRACE, noisy(TRACE, 0.01, first))
    assert (comparison.first.kind, comparison.first.place) == ("activation", first)
    assert comparison.first.typical == pytest.approx(0.01, rel=0.5)


def test_rounding_is_explained_at_every_depth():
    deep = made_trace(num_layers=12)
    assert compare_traces(deep, noisy(deep, 1e-7)).first is None


def test_what_bfloat16_explains_float32_does_not():
    assert compare_traces(TRACE, noisy(TRACE, 2e-3)).first.place == "embedding"
    coarse = made_trace(dtype="bfloat16")
    assert compare_traces(TRACE, noisy(coarse, 2e-3)).first is None
    assert compare_traces(TRACE, noisy(coarse, 0.1, "layers.1.mlp_norm")).first.place == "layers.1.mlp_norm"


@pytest.mark.parametrize("place, first", [
    ("layers.1.attention.causal_attention", None), ("layers.1.mlp.gate_up", "layers.1.mlp.gate_up"),
])
def test_attention_which_rounds_in_between_may_differ_more_than_a_matrix_product(place, first):
    coarse = made_trace(dtype="bfloat16")
    other = changed(coarse, "activation", place, lambda array: noisy(coarse, 3e-3).tensors["activation"][place])
    found = compare_traces(coarse, other).first
    assert (found and found.place) == first


def test_a_single_number_that_is_far_off_is_found():
    def one_is_off(array):
        array[3, 2] += 1
        return array

    comparison = compare_traces(TRACE, changed(TRACE, "activation", "layers.0.mlp.swiglu", one_is_off))
    assert comparison.first.place == "layers.0.mlp.swiglu" and comparison.first.largest == pytest.approx(1)


def test_not_a_number_on_one_side_is_infinitely_far():
    def lost(array):
        array[0, 0] = np.nan
        return array

    broken = changed(TRACE, "activation", "layers.1", lost)
    assert compare_traces(TRACE, broken).first.place == "layers.1"
    assert compare_traces(TRACE, broken).first.largest == np.inf
    assert compare_traces(broken, broken).first is None
    zeros = changed(TRACE, "activation", "layers.1", np.zeros_like)
    first = compare_traces(zeros, changed(zeros, "activation", "layers.1", lost)).first
    assert (first.place, first.relative) == ("layers.1", np.inf)


def test_a_loss_of_its_own_is_found_behind_equal_logits():
    comparison = compare_traces(TRACE, made_trace(loss=2.501))
    assert (comparison.first.kind, comparison.first.place) == ("activation", "loss")
    assert comparison.first.largest == pytest.approx(1e-3, rel=1e-3)


def test_a_backward_pass_that_is_wrong_is_found_from_the_loss_backwards():
    wrong = changed(TRACE, "activation_grad", "layers.1.mlp_norm", lambda array: array * 1.1)
    wrong = changed(wrong, "activation_grad", "layers.0", lambda array: array * 1.2)
    first = compare_traces(TRACE, wrong).first
    assert (first.kind, first.place) == ("activation_grad", "layers.1.mlp_norm")


def test_a_gradient_by_a_weight_and_their_norm_are_judged():
    wrong = changed(TRACE, "weight_grad", "layers.0.mlp.down.weight", lambda array: array * 1.1)
    assert compare_traces(TRACE, wrong).first.place == "layers.0.mlp.down.weight"
    first = compare_traces(TRACE, made_trace(grad_norm=0.51)).first
    assert (first.kind, first.place) == ("weight_grad", "grad_norm")


def test_a_new_weight_may_differ_by_what_its_gradients_explain():
    """The first step of AdamW is the learning rate times the sign of the gradient."""
    name, lr = "layers.0.mlp.down.weight", TRACE.lr

    def tiny(array):
        array[0, 0] = 1e-9
        return array

    def turned(array):
        array[0, 0] = -1e-9
        return array

    def stepped(array):
        array[0, 0] += 2 * lr
        return array

    one = changed(TRACE, "weight_grad", name, tiny)
    other = changed(changed(TRACE, "weight_grad", name, turned), "weight", name, stepped)
    assert compare_traces(one, other).first is None
    first = compare_traces(TRACE, changed(TRACE, "weight", name, stepped)).first
    assert (first.kind, first.place) == ("weight", name) and first.largest == pytest.approx(2 * lr, rel=1e-3)


def without(trace, kind, *names):
    arrays = {place: array for place, array in trace.tensors[kind].items() if place not in names}
    return dataclasses.replace(trace, tensors={**trace.tensors, kind: arrays})


def test_places_that_one_side_lacks_are_left_out_and_those_behind_are_judged_by_what_is_before():
    fewer = without(noisy(TRACE, 0.01, "layers.0.mlp.gate_up"), "activation", "layers.0.mlp.gate_up")
    comparison = compare_traces(TRACE, fewer)
    assert comparison.left_out == ("activation/layers.0.mlp.gate_up",)
    assert comparison.first.place == "layers.0.mlp.swiglu"


def test_other_tokens_are_refused():
    other = dataclasses.replace(TRACE, batch=Batch(ids=TRACE.batch.ids, labels=TRACE.batch.labels + 1))
    with pytest.raises(TraceError, match=r"other tokens \(labels\). Give both the same seed, sizes and --step."):
        compare_traces(TRACE, other)


def test_other_shapes_are_refused_and_listed():
    wide = {place: np.concatenate([array] * 2, 1) for place, array in TRACE.tensors["activation"].items()}
    other = dataclasses.replace(TRACE, tensors={**TRACE.tensors, "activation": wide})
    with pytest.raises(TraceError, match=r"other shapes .* embedding is \[8, 6\] and \[8, 12\]; .* and 16 more"):
        compare_traces(TRACE, other)


def test_a_model_with_another_number_of_layers_is_refused():
    with pytest.raises(TraceError, match="weight: only one has 'layers.2.attention.qkv.weight'"):
        compare_traces(TRACE, made_trace(num_layers=3))


def test_traces_without_a_place_in_common_are_refused():
    empty = dataclasses.replace(TRACE, tensors={kind: {} for kind in KINDS})
    with pytest.raises(TraceError, match="have no place in common"):
        compare_traces(TRACE, empty)
