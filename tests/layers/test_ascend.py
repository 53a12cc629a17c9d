"""Ascend's layers against the CPU's, on CPU: the fused operators are stood in for by the formulas they document.

What this shows is the wiring: head order, rotary layout, scale, mask, gate and up. The fused kernels need a chip.
"""

from __future__ import annotations

import numpy as np
import pytest

from graph import as_cell
from mindmodel.models.family import parameter_shapes
from mindmodel.recipe.schema import ModelSection

RTOL = 2e-5  # of the largest entry
SEQ_LEN, VOCAB_SIZE = 10, 37
MODEL = ModelSection(
    hidden_size=24,
    num_layers=1,
    num_heads=6,
    num_kv_heads=2,
    head_size=8,
    ffn_size=34,
    vocab_size=VOCAB_SIZE,
    qk_norm=True,
)


@pytest.fixture
def fused_operators_stood_in_for(kernels_of, monkeypatch):
    """Ascend's kernels, their fused operators replaced by plain ones."""
    from mindspore import nn, ops

    from mindmodel.layers import ascend

    class RmsNorm(nn.Cell):
        def __init__(self, epsilon):
            super().__init__()
            self.epsilon = epsilon

        def construct(self, x, gamma):
            inverse = ops.rsqrt((x * x).mean(-1, keep_dims=True) + self.epsilon)
            return x * inverse * gamma, inverse

    class Swiglu(nn.Cell):
        def construct(self, x, dim):
            gate, up = ops.split(x, 1, dim)
            return gate * ops.sigmoid(gate) * up

    class SplitWithSize(nn.Cell):
        def construct(self, x, sizes, dim):
            return ops.split(x, sizes, dim)

    class Dot(nn.Cell):
        def construct(self, x, y):
            return (x * y).sum()

    class RotaryPositionEmbedding(nn.Cell):
        def construct(self, x, cos, sin, mode):
            first, second = ops.split(x, x.shape[-1] // 2, -1)
            return x * cos + ops.concat((-second, first), -1) * sin

    class FlashAttentionScore(nn.Cell):
        def __init__(self, head_num, scale_value, next_tokens, input_layout, sparse_mode):
            super().__init__()
            assert (input_layout, sparse_mode) == ("BSH", 2)
            self.head_num, self.scale = head_num, scale_value

        def heads(self, x, size):
            x = x.reshape((x.shape[0], x.shape[1], -1, size)).transpose((0, 2, 1, 3))
            return ops.repeat_interleave(x, self.head_num // x.shape[1], 1)

        def construct(self, q, k, v, shift, drop, padding, mask, prefix, q_lens, kv_lens):
            seq_len, size = q.shape[1], q.shape[2] // self.head_num
            q, k, v = self.heads(q, size), self.heads(k, size), self.heads(v, size)
            scores = ops.BatchMatMul(transpose_b=True)(q, k) * self.scale
            hidden = ops.cast(mask[:seq_len, :seq_len], scores.dtype)
            mixed = ops.BatchMatMul()(ops.softmax(scores - 1e9 * hidden, -1), v)
            return None, None, None, mixed.transpose((0, 2, 1, 3)).reshape((q.shape[0], seq_len, -1))

    for operator in (Dot, RmsNorm, Swiglu, SplitWithSize, RotaryPositionEmbedding, FlashAttentionScore):
        monkeypatch.setattr(ascend, operator.__name__, operator)
    kernels_of("Ascend")


def weights() -> dict[str, np.ndarray]:
    random = np.random.RandomState(1)
    arrays = {name: random.standard_normal(shape) for name, shape in parameter_shapes(MODEL).items()}
    return {name: 1 + 0.2 * array if array.ndim == 1 else 0.3 * array for name, array in arrays.items()}


def loss_and_gradients(compiling) -> dict[str, np.ndarray]:
    """Of a whole decoder with the kernels that are chosen now, some labels ignored."""
    import mindspore as ms
    from mindspore import Tensor

    from mindmodel.models.decoder import Decoder, DecoderLoss
    from mindmodel.train.state import fill

    decoder = Decoder(MODEL, SEQ_LEN)
    fill(decoder.trainable_params(), weights(), "the test")
    parameters = ms.ParameterTuple(decoder.trainable_params())
    grad = ms.value_and_grad(DecoderLoss(decoder, VOCAB_SIZE, 0.1), None, weights=parameters, has_aux=True)

    ids, labels = np.random.RandomState(2).randint(0, VOCAB_SIZE, (2, 2, SEQ_LEN)).astype(np.int32)
    labels[:, ::3] = -100
    with compiling():
        (total, entropy), gradients = as_cell(grad)(Tensor(ids), Tensor(labels))
    found = {parameter.name: gradient.asnumpy() for parameter, gradient in zip(parameters, gradients)}
    return {"loss with z-loss": total.asnumpy(), "loss": entropy.asnumpy(), **found}


@pytest.fixture
def of_the_cpu(kernels_of, without_fusion, compiling):
    kernels_of("CPU")
    return loss_and_gradients(compiling)


def test_a_decoder_of_ascends_layers_computes_what_the_cpus_does(of_the_cpu, fused_operators_stood_in_for, compiling):
    found = loss_and_gradients(compiling)
    assert found.keys() == of_the_cpu.keys()
    for name, wanted in of_the_cpu.items():
        assert np.abs(found[name] - wanted).max() <= RTOL * np.abs(wanted).max(), name


@pytest.mark.parametrize("device", ["CPU", "Ascend"])
def test_gradients_that_are_not_finite_become_zero(device, kernels_of, compiling):
    from mindspore import Tensor

    x = np.array([[1.5, -2.0, np.inf], [-np.inf, np.nan, 4.0]], np.float32)
    with compiling():
        kept = kernels_of(device).adamw.finite_or_zero()(Tensor(x), Tensor(np.float32(0.5))).asnumpy()
    np.testing.assert_array_equal(kept, [[0.75, -1.0, 0.0], [0.0, 0.0, 2.0]])


def test_squares_are_summed(fused_operators_stood_in_for, compiling):
    from mindspore import Tensor

    from mindmodel.layers.ascend import KERNELS

    tensors = [Tensor(np.array(x, np.float32)) for x in ([[0.75, -1.0, 0.0]], [2.0])]
    with compiling():
        assert as_cell(KERNELS.square_sum())(tensors).asnumpy() == 0.75**2 + 1.0 + 4.0
        sums = as_cell(KERNELS.square_sums())(tensors).asnumpy()
        assert sum(sums) == 0.75**2 + 1.0 + 4.0 and len(sums) == len(tensors)
