"""The CPU's kernels, graph formulas and C++, against the plain formula in float64, at odd sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from graph import as_cell

RTOL = 2e-5  # of the largest entry


@pytest.fixture(params=["CPU", "Native"])
def kernels(request, kernels_of):
    return kernels_of(request.param)


RANDOM = np.random.RandomState(0)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def forward_and_gradients(cell, inputs, dout, differentiable, compiling, weights=()):
    """Output and the gradients of sum(output * dout) by inputs and weights."""
    import mindspore as ms
    from mindspore import Tensor, nn

    class Weighted(nn.Cell):
        def __init__(self):
            super().__init__()
            self.cell = cell

        def construct(self, *inputs):
            output = self.cell(*inputs)
            return (output * Tensor(dout)).sum(), output

    by_weights = ms.ParameterTuple(weights) if weights else None
    grad = ms.value_and_grad(Weighted(), grad_position=differentiable, weights=by_weights, has_aux=True)

    with compiling():
        (_, output), gradients = as_cell(grad)(*map(Tensor, inputs))
    flat = []
    for gradient in gradients if isinstance(gradients, tuple) else (gradients,):
        flat += gradient if isinstance(gradient, tuple) else [gradient]
    return output.asnumpy(), [gradient.asnumpy() for gradient in flat]


def torch_forward_and_gradients(formula, inputs, dout, differentiable):
    tensors = [torch.from_numpy(x).double() if x.dtype == np.float32 else torch.from_numpy(x) for x in inputs]
    for position in differentiable:
        tensors[position].requires_grad_()
    output = formula(*tensors)
    (output * torch.from_numpy(dout).double()).sum().backward()
    return output.detach().numpy(), [tensors[position].grad.numpy() for position in differentiable]


def compare(found, wanted):
    """Outputs and gradients."""
    for ours, theirs in zip([found[0], *found[1]], [wanted[0], *wanted[1]], strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= RTOL * np.abs(theirs).max()


def assert_same(cell, formula, inputs, dout, compiling, differentiable=(0,)):
    found = forward_and_gradients(cell, inputs, dout, differentiable, compiling)
    compare(found, torch_forward_and_gradients(formula, inputs, dout, differentiable))


@pytest.mark.parametrize("num_rows, size", [(1, 3), (7, 48), (33, 129)])
def test_rms_norm(num_rows, size, kernels, compiling):
    def formula(x, weight):
        return x / (x.pow(2).mean(1, keepdim=True) + 1e-5).sqrt() * weight

    inputs = (normal(num_rows, size), normal(size))
    assert_same(kernels.rms_norm(size, 1e-5), formula, inputs, normal(num_rows, size), compiling, (0, 1))


@pytest.mark.parametrize("num_rows, num_inputs, num_outputs", [(1, 3, 5), (7, 130, 48), (131, 17, 1)])
def test_linear(num_rows, num_inputs, num_outputs, kernels, compiling):
    def formula(x, weight):
        return x @ weight.T

    inputs = (normal(num_rows, num_inputs), normal(num_outputs, num_inputs))
    assert_same(kernels.linear(), formula, inputs, normal(num_rows, num_outputs), compiling, (0, 1))


def test_embedding(kernels, compiling):
    from mindspore import dtype as mstype

    def formula(ids, table):
        return table[ids.long()]

    inputs = (np.array([3, 0, 3, 12, 3], np.int32), normal(13, 7))
    assert_same(kernels.embedding(mstype.float32), formula, inputs, normal(5, 7), compiling, (1,))


@pytest.mark.parametrize("num_rows, ffn_size, num_blocks", [(1, 3, 1), (7, 96, 16), (5, 34, 2)])
def test_swiglu(num_rows, ffn_size, num_blocks, kernels, compiling):
    def formula(x):
        gate, up = x.reshape(num_rows, num_blocks, 2, -1).unbind(2)
        return (torch.nn.functional.silu(gate) * up).reshape(num_rows, ffn_size)

    inputs = (normal(num_rows, 2 * ffn_size),)
    assert_same(kernels.swiglu(num_blocks), formula, inputs, normal(num_rows, ffn_size), compiling)


def rms(x, weight):
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize(
    "num_sequences, seq_len, num_heads, num_kv_heads, size",
    [(1, 2, 1, 1, 2), (2, 7, 6, 2, 10), (3, 5, 4, 4, 8), (1, 130, 3, 1, 34)],
)
def test_causal_attention(num_sequences, seq_len, num_heads, num_kv_heads, size, qk_norm, kernels, compiling):
    from mindspore import nn

    group = num_heads // num_kv_heads
    angles = normal(seq_len, size // 2)
    cos, sin = (np.tile(table, (1, 2)) for table in (np.cos(angles), np.sin(angles)))

    def rotate(x):
        first, second = x.chunk(2, -1)
        return x * torch.from_numpy(cos).double() + torch.cat((-second, first), -1) * torch.from_numpy(sin).double()

    def formula(x, q_weight, k_weight):
        heads = x.reshape(num_sequences, seq_len, num_kv_heads, group + 2, size)
        q = heads[..., :group, :].reshape(num_sequences, seq_len, num_heads, size).transpose(1, 2)
        k, v = (heads[..., slot, :].transpose(1, 2).repeat_interleave(group, 1) for slot in (group, group + 1))
        if qk_norm:
            q, k = rms(q, q_weight), rms(k, k_weight)
        mixed = torch.nn.functional.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        return mixed.transpose(1, 2).reshape(num_sequences * seq_len, -1)

    class Norm(nn.Cell):
        """Its weight is what the test differentiates by."""

        def __init__(self, weight):
            super().__init__()
            self.weight, self.rms_norm = weight, kernels.rms_norm(size, 1e-6)

        def construct(self, x):
            return self.rms_norm(x, self.weight)

    class Attention(nn.Cell):
        def __init__(self):
            super().__init__()
            self.attention = kernels.causal_attention(num_heads, num_kv_heads, size, cos, sin)
            self.q_norm, self.k_norm = (Norm(Parameter(Tensor(x))) if qk_norm else None for x in inputs[1:])

        def construct(self, x):
            return self.attention(x, self.q_norm, self.k_norm)

    from mindspore import Parameter, Tensor

    num_rows = num_sequences * seq_len
    inputs = (normal(num_rows, (num_heads + 2 * num_kv_heads) * size), 1 + normal(size) / 3, 1 + normal(size) / 3)
    cell, dout = Attention(), normal(num_rows, num_heads * size)
    found = forward_and_gradients(cell, inputs[:1], dout, (0,), compiling, weights=cell.trainable_params())
    differentiable = (0, 1, 2) if qk_norm else (0,)
    compare(found, torch_forward_and_gradients(formula, inputs, dout, differentiable))


def head_loss(kernels, vocab_size, z_loss=0.0):
    """The sum to differentiate."""
    from mindspore import nn

    class Total(nn.Cell):
        def __init__(self):
            super().__init__()
            self.head_loss = kernels.head_loss(vocab_size, z_loss, True)

        def construct(self, hidden, weight, labels):
            return self.head_loss(hidden, weight, labels)[0]

    return Total()


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("num_rows, vocab_size, z_loss", [(1, 2, 0.0), (9, 131, 0.1), (70, 5, 0.0)])
def test_loss_with_ignored_labels_and_z_loss(num_rows, vocab_size, z_loss, chunks, kernels, compiling, monkeypatch):
    from mindmodel.layers import cpu

    monkeypatch.setattr(cpu, "LOGITS_BYTES", 4 * vocab_size * -(-num_rows // chunks))
    labels = RANDOM.randint(0, vocab_size, num_rows).astype(np.int32)
    labels[1::3] = -100

    def formula(hidden, weight, labels):
        logits = hidden @ weight.T
        entropy = torch.nn.functional.cross_entropy(logits, labels.long(), ignore_index=-100, reduction="sum")
        return entropy + z_loss * (logits.logsumexp(1).pow(2) * (labels >= 0)).sum()

    inputs = (normal(num_rows, 24) / 5, normal(vocab_size, 24), labels)
    cell = head_loss(kernels, vocab_size, z_loss)
    assert_same(cell, formula, inputs, np.array(1.5, np.float32), compiling, (0, 1))


def test_a_loss_for_evaluation_is_that_of_training(kernels, compiling):
    from mindspore import Tensor

    inputs = [Tensor(x) for x in (normal(9, 6), normal(31, 6), np.arange(-3, 6, dtype=np.int32))]
    with compiling():
        training = as_cell(kernels.head_loss(31, 0.1, True))(*inputs)
        evaluation = as_cell(kernels.head_loss(31, 0.1, False))(*inputs)
    assert len(evaluation) == 2
    np.testing.assert_allclose([x.asnumpy() for x in evaluation], [x.asnumpy() for x in training[:2]], rtol=1e-6)


def test_a_loss_of_many_rows_is_as_exact_as_one_of_few(kernels, compiling, without_fusion):
    """Numbers that are added one after another lose a digit here."""
    from mindspore import Tensor

    inputs = hidden, weight, labels = normal(4096, 6), normal(9, 6), np.arange(4096, dtype=np.int32) % 9
    with compiling():
        loss = head_loss(kernels, 9)(*map(Tensor, inputs)).asnumpy()
    logits = hidden.astype(np.float64) @ weight.astype(np.float64).T
    exact = np.log(np.exp(logits).sum(1)) - logits[np.arange(4096), labels]
    assert loss == pytest.approx(exact.sum(), rel=3e-7)


def test_all_labels_ignored_is_no_loss_and_no_gradient(kernels, compiling):
    inputs = (normal(4, 6), normal(9, 6), np.full(4, -100, np.int32))
    loss, gradients = forward_and_gradients(head_loss(kernels, 9), inputs, np.array(1, np.float32), (0, 1), compiling)
    assert loss == 0 and not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_hidden_state_that_is_not_finite_makes_the_loss_not_finite(bad, kernels, compiling):
    hidden = normal(4, 6)
    hidden[2, 3] = bad
    inputs = (hidden, normal(9, 6), np.arange(4, dtype=np.int32))
    loss, _ = forward_and_gradients(head_loss(kernels, 9), inputs, np.array(1, np.float32), (0,), compiling)
    assert not np.isfinite(loss)


@pytest.mark.parametrize("norms", [False, True])
def test_the_optimizers_kernels(kernels, compiling, norms):
    """Against the formula, decay on the first tensor only; a step that does not apply touches nothing."""
    from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

    shapes = ((7, 5), (3,))
    arrays = [[normal(*shape) for shape in shapes] for _ in range(4)]
    arrays[2] = [np.abs(x) for x in arrays[2]]

    class Update(nn.Cell):
        def __init__(self):
            super().__init__()
            self.tuples = [
                ParameterTuple([Parameter(Tensor(x), name=f"{group}.{i}") for i, x in enumerate(arrays[group])])
                for group in range(3)
            ]
            self.parameters, self.first, self.second = self.tuples
            self.update = kernels.adamw((True, False), True, norms)
            self.square_sum, self.square_sums = kernels.square_sum(), kernels.square_sums()

        def construct(self, grads, scalars, apply):
            lr, beta1, beta2, eps, decay, scale = scalars
            updated = self.update(
                self.parameters, self.first, self.second, grads, lr, beta1, beta2, eps, decay, scale, apply
            )
            sums = ops.depend(self.square_sum(grads), updated), self.square_sums(grads)
            return sums + (updated[0],) if norms else sums

    cell = Update()
    values = lr, beta1, beta2, eps, decay, scale = 0.1, 0.9, 0.99, 1e-3, 0.2, 0.5
    scalars = tuple(Tensor(value, dtype=cell.parameters[0].dtype) for value in values)
    grads = tuple(Tensor(x) for x in arrays[3])
    bad = (Tensor(np.full((7, 5), np.nan, np.float32)), grads[1])
    with compiling():
        cell(bad, scalars, Tensor(False))
    for tensors, before in zip(cell.tuples, arrays):
        for tensor, wanted in zip(tensors, before):
            np.testing.assert_array_equal(tensor.asnumpy(), wanted)
    total, each, *found = (output.asnumpy() for output in cell(grads, scalars, Tensor(True)))
    wanted = [(x.astype(np.float64) ** 2).sum() for x in arrays[3]]
    assert total == pytest.approx(sum(wanted), rel=1e-5) and list(each) == pytest.approx(wanted, rel=1e-5)
    after = [tensor.asnumpy().astype(np.float64) for tensor in cell.parameters]
    if norms:
        taken = [((new - old) ** 2).sum() for new, old in zip(after, arrays[0])]
        np.testing.assert_allclose(found[0], [[(x**2).sum() for x in after], wanted, taken], rtol=1e-5)
    for i, (p, m, v, g) in enumerate(zip(*arrays)):
        m, v = beta1 * m + (1 - beta1) * scale * g, beta2 * v + (1 - beta2) * (scale * g) ** 2
        p = p - lr * (m / (np.sqrt(v) + eps) + (decay * p if i == 0 else 0))
        for tensors, wanted in zip(cell.tuples, (p, m, v)):
            np.testing.assert_allclose(tensors[i].asnumpy(), wanted, rtol=1e-5, atol=1e-6)
