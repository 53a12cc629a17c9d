"""`train.compute_dtype` read from compiled training steps: it is that of the matmuls; weights and loss stay float32."""

from __future__ import annotations

import pytest

from graph import Graph, Operator, training_graph
from mindmodel.recipe.schema import ModelSection

SEQ_LEN, HIDDEN_SIZE = 12, 32
MODEL = ModelSection(
    family="qwen3", hidden_size=HIDDEN_SIZE, num_layers=1, num_heads=4, num_kv_heads=2, head_size=16, ffn_size=48,
    vocab_size=67, qk_norm=True, tied_embeddings=True,
)
MATMULS = ("MatMul", "BatchMatMul", "FlashAttentionScore", "FlashAttentionScoreGrad")
SUMS_BY_PRODUCT = {"rms_norm", "square_sum"}
"""Cells that sum columns or squares by a product, in float32."""


@pytest.fixture(scope="module")
def graphs() -> dict:
    """Compiled so far: what is asked of a graph is quick, to compile it is not."""
    return {}


@pytest.fixture(params=["CPU", "Ascend"])
def graph_of(request, kernels_of, graphs):
    """Function: the graph of a training step in a compute dtype, with a device's kernels."""
    kernels_of(request.param)

    def get(dtype: str) -> Graph:
        key = request.param, dtype
        if key not in graphs:
            graphs[key] = training_graph(MODEL, SEQ_LEN, dtype)
        return graphs[key]

    get.device = request.param
    return get


def matmuls(graph: Graph) -> list[Operator]:
    found = [operator for name in MATMULS for operator in graph.named(name)]
    return [operator for operator in found if not SUMS_BY_PRODUCT & set(operator.scope.split("/"))]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matmuls_of_layers_and_head_are_in_the_compute_dtype(dtype, graph_of):
    found = matmuls(graph_of(dtype))
    projections = 5  # qkv, out, gate_up, down and the head
    assert len(found) >= 3 * projections + 2  # forward and both gradients, and attention's own
    operands = [value.dtype for operator in found for value in operator.inputs[:2]]  # a fused one has a mask too
    # the CPU has no bfloat16 matmul: rounded operands, float32 products
    assert len(operands) == 2 * len(found) and set(operands) == {dtype if graph_of.device == "Ascend" else "float32"}


def test_weights_and_moments_stay_float32(graph_of):
    graph = graph_of("bfloat16")
    assert {"embedding.weight", "first_moment.embedding.weight", "norm.weight"} <= graph.parameters.keys()
    assert {value.dtype for value in graph.parameters.values()} == {"float32"}
    updates = [operator for operator in graph.operators if operator.name.startswith("Adam")]
    assert len(updates) == sum(name.startswith("first_moment.") for name in graph.parameters)
    assert {value.dtype for operator in updates for value in operator.inputs} == {"float32"}


def test_the_loss_is_float32_from_the_logits_on(graph_of):
    inside = [operator for operator in graph_of("bfloat16").operators if "/loss/" in f"/{operator.scope}/"]
    computing = [op for op in inside if op.name not in (*MATMULS, "Cast", "Reshape") and not op.is_gradient]
    outputs = [value for operator in computing for value in operator.outputs if "float" in value.dtype]
    floats = {value.dtype for value in outputs if value.shape[-1:] != (HIDDEN_SIZE,)}  # not those of hidden
    assert len(computing) > 5 and floats == {"float32"}


def test_norms_and_softmax_are_float32_inside(graph_of):
    """Ascend's fused operators give their statistics in float32."""
    graph = graph_of("bfloat16")
    roots = [operator.outputs[0] for operator in graph.named("Rsqrt")]
    roots += [operator.outputs[1] for operator in graph.named("RmsNorm")]
    softmaxes = [operator.outputs[0] for operator in graph.named("Softmax") + graph.named("FlashAttentionScore")]
    assert len(roots) >= 3 and softmaxes
    assert {value.dtype for value in roots + softmaxes} == {"float32"}


def test_a_float32_graph_holds_no_bfloat16(graph_of):
    operators = graph_of("float32").operators
    assert "bfloat16" not in {value.dtype for operator in operators for value in operator.outputs}
