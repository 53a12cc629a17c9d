"""Floating-point operations of a kernel's matrix products, from its shapes; a multiply and an add are two.

Elementwise work is not counted. Attention is counted over the pairs of tokens that a causal mask leaves.
"""

from __future__ import annotations

import math

from mindmodel.debug.profile.kernel_graph import Kernel

PRODUCTS = {"attention_forward": 2, "attention_backward": 5}
"""Of attention: scores and mix; those again, and the gradients of queries, keys, values and probabilities."""


def flop_of(kernel: Kernel) -> int:
    """Of one run; 0 of a kernel without a matrix product."""
    if kernel.parts:
        return sum(map(flop_of, kernel.parts))
    if kernel.operator in ("MatMul", "BatchMatMul"):
        transposed = bool(kernel.flags) and kernel.flags[0]
        inner = kernel.operands[0].shape[-2 if transposed else -1]
        return 2 * inner * math.prod(kernel.results[0].shape)
    name = kernel.operator.removeprefix("Custom:").replace("attention_qk_norm", "attention")
    if name in PRODUCTS:
        return PRODUCTS[name] * _attention_product(kernel)
    if name in ("linear_forward", "linear_backward", "head_loss_forward", "head_loss"):
        (rows, inputs), (outputs, _) = kernel.operands[0].shape, kernel.operands[1].shape
        products = {"linear_backward": 2, "head_loss": 3}.get(name, 1)
        return products * 2 * rows * inputs * outputs
    return 0


def _attention_product(kernel: Kernel) -> int:
    """One product of attention over the causal pairs: queries by keys, or probabilities by values.

    The kernels read the fused projection [B S, (H + 2 K) d] and tables [S, d]. The number of heads is a constant that
    MindSpore's text leaves out; it is the second dim of the log-denominators, which are [B, H, S].
    """
    (rows, _), (seq_len, head_size) = kernel.operands[0].shape, kernel.operands[1].shape
    known = (*kernel.results, *kernel.operands)
    num_heads = next(kind.shape[1] for kind in known if len(kind.shape) == 3 and kind.shape[2] == seq_len)
    return 2 * head_size * num_heads * (rows // seq_len) * (seq_len * (seq_len + 1) // 2)
