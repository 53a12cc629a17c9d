"""A layer takes the kernels of the device, and never another device's."""

from __future__ import annotations

import numpy as np
import pytest

from graph import compiled_graph
from mindmodel.recipe.schema import ModelSection, OptimSection, TrainSection

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


def training_step():
    """A step whose every kernel is the device's."""
    from mindmodel.models.decoder import Decoder, DecoderLoss
    from mindmodel.train.optim import AdamW
    from mindmodel.train.step import TrainStep

    train = TrainSection(steps=1, tokens_per_step=2 * SEQ_LEN)
    decoder = Decoder(MODEL, SEQ_LEN)
    optimizer = AdamW(decoder.trainable_params(), OptimSection())
    return TrainStep(DecoderLoss(decoder, MODEL.vocab_size, 1e-4), optimizer, train, 1).set_train()


def test_every_kernel_is_of_the_device(device):
    from mindmodel.layers.kernels import device_kernels

    assert {kernel.__module__ for kernel in device_kernels()} == {ROOMS[device]}


def test_every_cell_of_a_model_takes_the_devices_kernels(device):
    others = {room for name, room in ROOMS.items() if name != device}
    rooms = [type(cell).__module__ for _, cell in training_step().cells_and_names()]
    assert rooms.count(ROOMS[device]) >= 15  # embedding, 4 linear, 5 norms, feed-forward, attention, loss, optimizer
    assert not others & set(rooms)


def test_on_ascend_a_training_step_is_of_fused_operators(kernels_of):
    import mindspore as ms
    from mindspore import Tensor

    kernels_of("Ascend")
    ids = Tensor(np.zeros((2, SEQ_LEN), np.int32))
    graph = compiled_graph(training_step(), ids, ids, Tensor(1e-3, ms.float32))
    counts = {
        "RmsNorm": 5, "RotaryPositionEmbedding": 2, "FlashAttentionScore": 1, "Swiglu": 1,
        "RmsNormGrad": 5, "RotaryPositionEmbeddingGrad": 2, "FlashAttentionScoreGrad": 1, "SwigluGrad": 1,
    }
    assert {name: len(graph.named(name)) for name in counts} == counts
    formulas = {"BatchMatMul", "Softmax", "Sigmoid", "Rsqrt", "LogSoftmax"}
    assert not formulas & {operator.name for operator in graph.operators}
