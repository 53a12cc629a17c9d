"""The CPU's formulas with hand-written backward passes against the plain formula in float64, at odd sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graph import as_cell

RTOL = 2e-5  # of the largest entry

RANDOM = np.random.RandomState(0)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def forward_and_gradients(cell, inputs, dout, differentiable, compiling):
    """Output and the gradients of sum(output * dout)."""
    import mindspore as ms
    from mindspore import Tensor, nn

    class Weighted(nn.Cell):
        def __init__(self):
            super().__init__()
            self.cell = cell

        def construct(self, *inputs):
            output = self.cell(*inputs)
            return (output * Tensor(dout)).sum(), output

    grad = ms.value_and_grad(Weighted(), grad_position=differentiable, has_aux=True)

    with compiling():
        (_, output), gradients = as_cell(grad)(*map(Tensor, inputs))
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    return output.asnumpy(), [gradient.asnumpy() for gradient in gradients]


def torch_forward_and_gradients(formula, inputs, dout, differentiable):
    tensors = [torch.from_numpy(x).double() if x.dtype == np.float32 else torch.from_numpy(x) for x in inputs]
    for position in differentiable:
        tensors[position].requires_grad_()
    output = formula(*tensors)
    (output * torch.from_numpy(dout).double()).sum().backward()
    return output.detach().numpy(), [tensors[position].grad.numpy() for position in differentiable]


def assert_same(cell, formula, inputs, dout, compiling, differentiable=(0,)):
    found, found_gradients = forward_and_gradients(cell, inputs, dout, differentiable, compiling)
    wanted, wanted_gradients = torch_forward_and_gradients(formula, inputs, dout, differentiable)
    for ours, theirs in zip([found, *found_gradients], [wanted, *wanted_gradients]):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= RTOL * np.abs(theirs).max()


@pytest.mark.parametrize("num_rows, size", [(1, 3), (7, 48), (33, 129)])
def test_rms_norm(num_rows, size, compiling):
    from mindmodel.layers.cpu import RMSNormCPU

    def formula(x, weight):
        return x / (x.pow(2).mean(1, keepdim=True) + 1e-5).sqrt() * weight

    inputs = (normal(num_rows, size), normal(size))
    assert_same(RMSNormCPU(size, 1e-5), formula, inputs, normal(num_rows, size), compiling, (0, 1))


@pytest.mark.parametrize("num_rows, ffn_size, num_blocks", [(1, 3, 1), (7, 96, 16), (5, 34, 2)])
def test_swiglu(num_rows, ffn_size, num_blocks, compiling):
    from mindmodel.layers.cpu import SwiGLUCPU

    def formula(x):
        gate, up = x.reshape(num_rows, num_blocks, 2, -1).unbind(2)
        return (torch.nn.functional.silu(gate) * up).reshape(num_rows, ffn_size)

    inputs = (normal(num_rows, 2 * ffn_size),)
    assert_same(SwiGLUCPU(num_blocks), formula, inputs, normal(num_rows, ffn_size), compiling)


@pytest.mark.parametrize(
    "num_sequences, seq_len, num_heads, num_kv_heads, size", [(1, 2, 1, 1, 2), (2, 7, 6, 2, 10), (3, 5, 4, 4, 8)]
)
def test_causal_attention(num_sequences, seq_len, num_heads, num_kv_heads, size, compiling):
    from mindmodel.layers.cpu import CausalAttentionCPU

    group = num_heads // num_kv_heads
    angles = normal(seq_len, size // 2)
    cos, sin = (np.tile(table, (1, 2)) for table in (np.cos(angles), np.sin(angles)))

    def rotate(x):
        first, second = x.chunk(2, -1)
        return x * torch.from_numpy(cos).double() + torch.cat((-second, first), -1) * torch.from_numpy(sin).double()

    def formula(x):
        heads = x.reshape(num_sequences, seq_len, num_kv_heads, group + 2, size)
        q = heads[..., :group, :].reshape(num_sequences, seq_len, num_heads, size).transpose(1, 2)
        k, v = (heads[..., slot, :].transpose(1, 2).repeat_interleave(group, 1) for slot in (group, group + 1))
        mixed = torch.nn.functional.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        return mixed.transpose(1, 2).reshape(num_sequences * seq_len, -1)

    class WithoutNorms(CausalAttentionCPU):
        def construct(self, x):
            return CausalAttentionCPU.construct(self, x, None, None)

    num_rows = num_sequences * seq_len
    inputs = (normal(num_rows, (num_heads + 2 * num_kv_heads) * size),)
    cell = WithoutNorms(num_heads, num_kv_heads, size, cos, sin)
    assert_same(cell, formula, inputs, normal(num_rows, num_heads * size), compiling)


@pytest.mark.parametrize("num_rows, vocab_size", [(1, 2), (9, 131)])
def test_cross_entropy_with_ignored_labels_and_z_loss(num_rows, vocab_size, compiling):
    from mindmodel.layers.loss import CrossEntropy

    labels = RANDOM.randint(0, vocab_size, num_rows).astype(np.int32)
    labels[1::3] = -100

    def formula(logits, labels):
        entropy = torch.nn.functional.cross_entropy(logits, labels.long(), ignore_index=-100, reduction="sum")
        squared = logits.logsumexp(1).pow(2) * (labels >= 0)
        return entropy + 0.1 * squared.sum()

    class Total(CrossEntropy):
        def construct(self, logits, labels):
            return CrossEntropy.construct(self, logits, labels)[0]

    inputs = (5 * normal(num_rows, vocab_size), labels)
    assert_same(Total(vocab_size, 0.1), formula, inputs, np.array(1.5, np.float32), compiling)


def test_all_labels_ignored_is_no_loss_and_no_gradient(compiling):
    from mindmodel.layers.loss import CrossEntropy

    class Total(CrossEntropy):
        def construct(self, logits, labels):
            return CrossEntropy.construct(self, logits, labels)[0]

    inputs = (normal(4, 9), np.full(4, -100, np.int32))
    loss, (gradient,) = forward_and_gradients(Total(9), inputs, np.array(1, np.float32), (0,), compiling)
    assert loss == 0 and not gradient.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_logit_that_is_not_finite_makes_the_loss_not_finite(bad, compiling):
    from mindmodel.layers.loss import CrossEntropy

    class Total(CrossEntropy):
        def construct(self, logits, labels):
            return CrossEntropy.construct(self, logits, labels)[0]

    logits = normal(4, 9)
    logits[2, 3] = bad
    inputs = (logits, np.arange(4, dtype=np.int32))
    loss, _ = forward_and_gradients(Total(9), inputs, np.array(1, np.float32), (0,), compiling)
    assert not np.isfinite(loss)
