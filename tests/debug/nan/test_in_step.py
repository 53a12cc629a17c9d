"""A fault planted in a random layer, sequence and token is named; a clean step is not."""

from __future__ import annotations

import random

import numpy as np
import pytest

from mindmodel.data.loader import Batch
from mindmodel.recipe.load import recipe_from_dict

NUM_LAYERS, SEQ_LEN, NUM_SEQUENCES = 3, 8, 4
RECIPE = {
    "name": "faults",
    "model": {"hidden_size": 8, "num_layers": NUM_LAYERS, "num_heads": 2, "num_kv_heads": 1, "head_size": 4,
              "ffn_size": 8, "vocab_size": 64, "qk_norm": False},
    "data": {"source": "stdlib", "seq_len": SEQ_LEN, "tokenizer_vocab_size": 300},
    "train": {"steps": 1, "tokens_per_step": NUM_SEQUENCES * SEQ_LEN},
    "parallel": {"dp": 1, "micro_batches": 2},
    "runtime": {"device": "cpu"},
}
ROWS = NUM_SEQUENCES * SEQ_LEN // 2
"""Of a micro-batch."""


def batch() -> Batch:
    ids = np.random.RandomState(0).randint(0, 64, (NUM_SEQUENCES, SEQ_LEN + 1)).astype(np.int32)
    return Batch(ids=ids[:, :-1], labels=ids[:, 1:])


def planted(built):
    """Behind each layer's SwiGLU, forward and backward, an exponential added to each row: 0 until it is set.

    One function makes all of them, so that MindSpore names them after one layer.
    """
    import mindspore as ms
    from mindspore import Parameter, Tensor, nn, ops

    def added(x, amount):
        x32 = ops.cast(x, ms.float32)
        return ops.cast(x32 + (ops.exp(amount * ops.minimum(ops.abs(x32) * 1e12, 1.0)) - 1.0), x.dtype)

    class Back(nn.Cell):
        def construct(self, x, amount):
            return x

        def bprop(self, x, amount, out, dout):
            return added(dout, amount), ops.zeros_like(amount)

    class Planted(nn.Cell):
        def __init__(self, cell):
            super().__init__(auto_prefix=False)
            self.cell, self.back = cell, Back()
            self.forward, self.backward = (
                Parameter(Tensor(np.zeros((ROWS, 1), np.float32)), name=phase, requires_grad=False)
                for phase in ("forward", "backward")
            )

        def construct(self, x):
            return self.back(added(self.cell(x), self.forward), self.backward)

    for number, layer in enumerate(built.decoder.layers):
        layer.mlp.swiglu = Planted(layer.mlp.swiglu)
        for phase in ("forward", "backward"):
            getattr(layer.mlp.swiglu, phase).name = f"layers.{number}.mlp.swiglu.{phase}"


@pytest.fixture(params=[("CPU", "float32"), ("Native", "bfloat16")], ids=lambda param: " ".join(param))
def searched(request, kernels_of, runtime, tmp_path):
    """A small model with a fault in each layer that is not yet set, and what searches it."""
    from mindmodel.debug.nan.in_step import Search
    from mindmodel.models.decoder import initialize
    from mindmodel.train.build import build

    kernels, dtype = request.param
    kernels_of(kernels)
    recipe = recipe_from_dict({**RECIPE, "train": {**RECIPE["train"], "compute_dtype": dtype}}, "faults")
    built = build(recipe)
    initialize(built.decoder, recipe.model, 1)
    planted(built)
    return built, Search(built, recipe, runtime, tmp_path)


def set_fault(layer, phase: str, row: int, value: float) -> None:
    from mindspore import Tensor

    amount = np.zeros((ROWS, 1), np.float32)
    amount[row] = value
    getattr(layer.mlp.swiglu, phase).set_data(Tensor(amount))


def faults_of_layers(built, search):
    """Five faults, each in a random layer and row."""
    draw = random.Random(7)
    for phase in ("forward", "backward", "forward", "backward", "forward"):
        number, row = draw.randrange(NUM_LAYERS), draw.randrange(ROWS)
        set_fault(built.decoder.layers[number], phase, row, 100.0)
        found = search.first(batch())
        assert (found.phase, found.operator, found.range.bad) == (phase, "Exp", "inf")
        assert found.place.startswith(f"layers.{number}.mlp.")
        assert found.tensor == f"result of Exp in {found.place}"
        assert (found.sequence, found.token) == divmod(row, SEQ_LEN)
        (given,) = found.inputs
        assert given.name.startswith("result of Mul") and (given.range.low, given.range.high) == (0.0, 100.0)
        set_fault(built.decoder.layers[number], phase, 0, 0.0)


def gradients_whose_squares_overflow(built, search):
    """Each of them is finite."""
    set_fault(built.decoder.layers[1], "backward", 3, 48.0)
    found = search.first(batch())
    assert (found.tensor, found.operator, found.phase) == ("the gradient norm", "sum of squares", "backward")
    assert len(found.inputs) == 4 and found.inputs[0].name.startswith("gradient of layers.")
    assert found.inputs[0].range.num_bad == 0 and found.inputs[0].range.high > 1e18
    set_fault(built.decoder.layers[1], "backward", 3, 0.0)


def an_embedding_that_one_token_reads(built, search):
    """That token is in the second micro-batch only."""
    from mindspore import Tensor

    given, table = batch(), built.decoder.embedding.weight
    given.ids[given.ids == 9] = 8
    given.ids[3, 5] = 9
    broken = table.asnumpy().copy()
    broken[9] = np.inf
    table.set_data(Tensor(broken))
    found = search.first(given)
    assert (found.operator, found.place, found.inputs[0].name) == ("Gather", "embedding", "embedding.weight")
    assert (found.sequence, found.token) == (3, 5)


def test_faults_are_named_by_phase_layer_operator_sequence_and_token(searched):
    built, search = searched
    assert search.first(batch()) is None
    faults_of_layers(built, search)
    gradients_whose_squares_overflow(built, search)
    assert search.first(batch()) is None
    an_embedding_that_one_token_reads(built, search)


def test_a_weight_that_is_not_finite_is_named():
    from mindspore import Parameter, Tensor

    from mindmodel.debug.nan.in_step import first_bad_parameter

    good = Parameter(Tensor(np.ones(3, np.float32)), name="norm.weight")
    bad = Parameter(Tensor(np.float32([[1, 2], [np.nan, 3]])), name="layers.1.mlp.down.weight")
    assert first_bad_parameter([good], "read") is None
    read, updated = (first_bad_parameter([good, bad], phase) for phase in ("read", "update"))
    assert (read.tensor, read.place, read.operator) == ("layers.1.mlp.down.weight", "layers.1.mlp.down", "")
    assert read.range.first_bad == (1, 0) and (updated.phase, updated.operator) == ("update", "AdamW")
