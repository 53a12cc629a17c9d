"""What a step's largest tensors are: native kernels never build the S x S matrix, and no loss holds all logits."""

from __future__ import annotations

import math

import pytest

from graph import training_graph
from mindmodel.recipe.schema import ModelSection

VOCAB_SIZE = 3001
MODEL = ModelSection(
    hidden_size=32, num_layers=1, num_heads=4, num_kv_heads=2, head_size=8, ffn_size=48, vocab_size=VOCAB_SIZE
)


def shapes(seq_len: int) -> set[tuple[int, ...]]:
    """Of all results in a training step's graph."""
    operators = training_graph(MODEL, seq_len).operators
    return {value.shape for operator in operators for value in operator.outputs}


def test_with_native_kernels_activations_grow_linearly_with_the_sequence(kernels_of):
    kernels_of("Native")
    # whatever grows with the square of the sequence is more than four times as large at four times its length
    sizes = [{math.prod(shape) for shape in shapes(seq_len) if seq_len in shape or 2 * seq_len in shape}
             for seq_len in (96, 384)]
    assert max(sizes[1]) == 4 * max(sizes[0])


def test_the_graphs_formulas_do_build_the_matrix(kernels_of):
    """So that the test above can fail."""
    kernels_of("CPU")
    assert any(shape[-2:] == (96, 96) for shape in shapes(96))


@pytest.mark.parametrize("kernels", ["CPU", "Native"])
def test_all_logits_never_stand_side_by_side(kernels, kernels_of, monkeypatch):
    from mindmodel.layers import cpu

    monkeypatch.setattr(cpu, "LOGITS_BYTES", 4 * VOCAB_SIZE * 50)
    kernels_of(kernels)
    rows = [shape[0] for shape in shapes(96) if shape[1:] == (VOCAB_SIZE,)]
    assert max(rows, default=0) <= 50
