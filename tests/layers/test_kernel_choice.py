"""A layer takes the kernels of the device, and never another device's."""

from __future__ import annotations

import pytest

from graph import training_graph, training_step
from mindmodel.recipe.schema import ModelSection

ROOMS = {
    "CPU": "mindmodel.layers.cpu",
    "Native": "mindmodel.layers.native.cells",
    "Ascend": "mindmodel.layers.ascend",
}
SEQ_LEN = 12
MODEL = ModelSection(
    hidden_size=32, num_layers=1, num_heads=4, num_kv_heads=2, head_size=8, ffn_size=48, vocab_size=67, qk_norm=True
)


@pytest.fixture(params=ROOMS)
def device(request, kernels_of):
    kernels_of(request.param)
    return request.param


def test_every_kernel_is_of_the_device(device):
    from mindmodel.layers.kernels import device_kernels

    assert {kernel.__module__ for kernel in device_kernels()} - {"mindmodel.layers.shared"} == {ROOMS[device]}


def test_every_cell_of_a_model_takes_the_devices_kernels(device):
    others = {room for name, room in ROOMS.items() if name != device}
    rooms = [type(cell).__module__ for _, cell in training_step(MODEL, SEQ_LEN).cells_and_names()]
    assert rooms.count(ROOMS[device]) >= 14  # 4 linear, 5 norms, feed-forward, attention, loss, optimizer
    assert not others & set(rooms)


def test_on_ascend_a_training_step_is_of_fused_operators(kernels_of):
    kernels_of("Ascend")
    graph = training_graph(MODEL, SEQ_LEN)
    counts = {
        "RmsNorm": 5, "RotaryPositionEmbedding": 2, "FlashAttentionScore": 1, "Swiglu": 1,
        "RmsNormGrad": 5, "RotaryPositionEmbeddingGrad": 2, "FlashAttentionScoreGrad": 1, "SwigluGrad": 1,
    }
    assert {name: len(graph.named(name)) for name in counts} == counts
    formulas = {"BatchMatMul", "Softmax", "Sigmoid", "Rsqrt", "LogSoftmax"}
    assert not formulas & {operator.name for operator in graph.operators}
