"""Taps: the step that has them computes what the step without them computes, and gives all of it; planted faults are
found with the place where they were planted."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest

from mindmodel.checkpoint.tensors import Float32Blocks
from mindmodel.debug.traces.compare import compare_traces
from mindmodel.debug.traces.inputs import inputs_of
from mindmodel.debug.traces.trace import LOGITS, places
from mindmodel.errors import GraphError
from mindmodel.models.family import parameter_shapes
from mindmodel.recipe.load import recipe_from_dict
from mindmodel.recipe.rules import resolve_degrees, with_defaults

SIZES = {"hidden_size": 32, "num_heads": 4, "num_kv_heads": 2, "ffn_size": 64, "vocab_size": 300}
PAIRS = (("wrong rope sign", "gate and up swapped"), ("no attention scale", "KV heads on the wrong axis"))
"""Planted together, in layers 0 and 1; the second is larger, so that the first does not explain it."""
SINGLE = (*PAIRS[0], *PAIRS[1], "norm without float32")


def a_recipe(num_layers: int = 2, seed: int = 1, dtype: str = "float32", micro_batches: int = 1, sequences: int = 5):
    recipe = recipe_from_dict({
        "name": "tests",
        "model": {**SIZES, "num_layers": num_layers},
        "data": {"source": "stdlib", "seq_len": 16, "tokenizer_vocab_size": 300},
        "train": {"steps": 1, "tokens_per_step": 16 * sequences, "seed": seed, "compute_dtype": dtype},
        "parallel": {"micro_batches": micro_batches},
        "runtime": {"device": "cpu", "cpu_kernels": "graph"},
    }, "tests")
    return resolve_degrees(with_defaults(recipe), 1)


@pytest.fixture
def traced(runtime, without_fusion, monkeypatch):
    """Function: the trace of a recipe; faults may be planted, by layer."""
    from mindmodel.debug.traces import tapped
    from planted_faults import FAULTS

    build = tapped.build

    def trace(recipe, faults=()):
        def build_with_faults(recipe):
            built = build(recipe)
            for layer, fault in faults:
                FAULTS[fault][0](built.decoder.layers[layer], recipe.model)
            return built

        monkeypatch.setattr(tapped, "build", build_with_faults)
        return tapped.trace_step(recipe, inputs_of(recipe), runtime, "tests")

    return trace


@pytest.fixture(scope="module")
def clean():
    """Traces without faults, by recipe's arguments."""
    return {}


@pytest.fixture
def clean_trace(clean, traced):
    """Function: as `traced`, each only once."""
    def find(**given):
        key = tuple(sorted(given.items()))
        if key not in clean:
            clean[key] = traced(a_recipe(**given))
        return clean[key]

    return find


def test_the_step_with_taps_is_bitwise_the_step_without(runtime, without_fusion, compiling, clean_trace):
    from mindmodel.models.decoder import initialize
    from mindmodel.train.build import build

    recipe, trace = a_recipe(), clean_trace()
    built, inputs = build(recipe), inputs_of(recipe)
    initialize(built.decoder, recipe.model, recipe.train.seed)
    with compiling():
        loss, norm, applied = built.run(inputs.batch, inputs.lr)
    assert (float(loss.asnumpy()), float(norm.asnumpy())) == (trace.loss, trace.grad_norm) and applied.asnumpy()
    weights = {parameter.name: parameter.asnumpy() for parameter in built.optimizer.parameters}
    assert list(weights) == list(trace.tensors["weight"])
    assert all(weights[name].tobytes() == array.tobytes() for name, array in trace.tensors["weight"].items())


def test_every_place_has_an_activation_and_all_but_the_logits_a_gradient(clean_trace):
    trace, columns = clean_trace(), places(a_recipe().model)
    assert {place: array.shape for place, array in trace.tensors["activation"].items()} == {
        place: (80, count) for place, count in columns.items()
    }
    assert list(trace.tensors["activation_grad"]) == [place for place in columns if place != LOGITS]


def test_what_is_kept_is_what_the_formulas_say(clean_trace):
    """Embedding, a matmul, both ways, and the gradients of the mean loss: against NumPy."""
    from mindmodel.models.decoder import initial_weight

    trace, model = clean_trace(), a_recipe().model
    kept, grads = trace.tensors["activation"], trace.tensors["activation_grad"]

    def weight(name):
        return initial_weight(name, trace.tensors["weight"][name].shape, model, 1)

    ids, labels = trace.batch.ids.reshape(-1), trace.batch.labels.reshape(-1)
    np.testing.assert_array_equal(kept["embedding"], weight("embedding.weight")[ids])
    down = "layers.1.mlp.down"
    np.testing.assert_allclose(kept[down], kept["layers.1.mlp.swiglu"] @ weight(f"{down}.weight").T, atol=1e-6)
    np.testing.assert_allclose(trace.tensors["weight_grad"][f"{down}.weight"],
                               grads[down].T @ kept["layers.1.mlp.swiglu"], atol=1e-6)
    np.testing.assert_allclose(kept[LOGITS], kept["norm"] @ weight("head.weight").T, atol=1e-6)
    probabilities = np.exp(kept[LOGITS]) / np.exp(kept[LOGITS]).sum(1, keepdims=True)
    assert trace.loss == pytest.approx(-np.log(probabilities[np.arange(80), labels]).mean(), abs=1e-5)
    probabilities[np.arange(80), labels] -= 1
    np.testing.assert_allclose(grads["norm"], probabilities @ weight("head.weight") / 80, atol=1e-7)


def test_micro_batches_and_rows_that_fill_the_batch_up_change_nothing(clean_trace):
    """Five sequences in two micro-batches are six, of which one counts for nothing."""
    whole, parts = clean_trace(), clean_trace(micro_batches=2)
    assert parts.tensors["activation"]["embedding"].shape == (80, 32)
    assert compare_traces(whole, parts).first is None


def test_float32_and_bfloat16_agree_as_far_as_they_can(clean_trace):
    coarse = clean_trace(dtype="bfloat16")
    assert coarse.tensors["activation"]["layers.0.mlp.swiglu"].dtype.name == "bfloat16"
    comparison = compare_traces(clean_trace(), coarse)
    assert comparison.first is None and max(row.typical for row in comparison.rows) > 1e-3


def place_of(layer: int, fault: str) -> str:
    """Where a planted fault is to be found."""
    from planted_faults import FAULTS

    return f"layers.{layer}.{FAULTS[fault][1]}"


@pytest.mark.parametrize("pair", PAIRS)
def test_two_planted_faults_are_both_found_and_nothing_else_is_blamed(pair, traced, clean_trace):
    comparison = compare_traces(clean_trace(), traced(a_recipe(), list(enumerate(pair))))
    blamed = [row.place for row in comparison.rows if row.kind == "activation" and row.beyond and row.place != "loss"]
    assert blamed == [place_of(layer, fault) for layer, fault in enumerate(pair)]
    assert comparison.first.place == blamed[0]


def test_a_norm_that_computes_in_bfloat16_is_found_between_computations_in_bfloat16(traced, clean_trace):
    faulty = traced(a_recipe(dtype="bfloat16"), [(1, "norm without float32")])
    first = compare_traces(clean_trace(dtype="bfloat16"), faulty).first
    assert (first.kind, first.place) == ("activation", place_of(1, "norm without float32"))


@pytest.mark.long
@pytest.mark.parametrize("fault", SINGLE)
def test_a_planted_fault_is_found_in_any_layer(fault, traced, clean_trace):
    given = {"num_layers": 4, "seed": 7, "dtype": "bfloat16" if fault == "norm without float32" else "float32"}
    layer = random.Random(fault).randrange(4)
    first = compare_traces(clean_trace(**given), traced(a_recipe(**given), [(layer, fault)])).first
    assert (first.kind, first.place) == ("activation", place_of(layer, fault))


def test_weights_of_init_from_are_taken(runtime, monkeypatch):
    from types import SimpleNamespace

    from mindmodel.debug.traces import tapped

    recipe = a_recipe(num_layers=1)
    shapes = parameter_shapes(recipe.model)
    weights = Float32Blocks.of_whole(shapes, lambda name: np.full(shapes[name], 0.5, np.float32))
    monkeypatch.setattr(tapped, "initial_weights", lambda recipe: SimpleNamespace(weights=weights))
    begun = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, init_from="runs/other"))
    held = tapped.TracedSteps(begun, runtime).weights
    assert held.keys() == shapes.keys() and all((array == 0.5).all() for array in held.values())


def test_a_step_that_does_not_compile_is_told_in_a_line(traced, monkeypatch):
    from mindmodel.debug.traces import tapped

    def refuse(*arguments):
        raise TypeError("\n----\n- Kernel select failed:\n----\nUnsupported op [RmsNorm] on CPU\n")

    monkeypatch.setattr(tapped, "tapped_step", lambda recipe, built: refuse)
    with pytest.raises(GraphError, match=r"compile: Unsupported op \[RmsNorm\] on CPU. `mindmodel debug graph"):
        traced(a_recipe(num_layers=1))
