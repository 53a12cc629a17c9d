"""What MindSpore's flash attention and its gradient compute, in NumPy. Shapes: B batch, N heads, S tokens, D head."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Optional

import numpy as np

from mindmodel.dryrun.kernels import Array, Context, Kernel, undefined

COMPRESSED_MASK_SIZE = 2048  # of the mask of sparse modes 2, 3 and 4
BSH, BNSD = 0, 1  # MindSpore's numbers of the layouts


class _Attention(NamedTuple):
    """The last operands of FlashAttentionScore and of its gradient."""

    num_heads: int
    keep_prob: float
    scale: float
    pre_tokens: int
    next_tokens: int
    inner_precise: int
    layout: int
    sparse_mode: int

    def heads(self, x: Array, head_size: int) -> Array:
        """As [B, N, S, D]."""
        if self.layout == BNSD:
            return x
        return x.reshape(*x.shape[:2], -1, head_size).swapaxes(1, 2)

    def joined(self, x: Array) -> Array:
        """[B, N, S, D] as the layout has it."""
        if self.layout == BNSD:
            return x
        return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)

    def head_size(self, q: Array) -> int:
        """Width of one head of the query."""
        return q.shape[-1] if self.layout == BNSD else q.shape[-1] // self.num_heads


def _attention(settings: tuple[Any, ...], *absent: Any) -> _Attention:
    """The settings of a call, if there is a kernel for them; no operand that must be absent may be given."""
    attention = _Attention(*settings)
    given = any(operand is not None for operand in absent)
    if given or attention.keep_prob != 1 or attention.layout not in (BSH, BNSD) or attention.sparse_mode > 4:
        raise ValueError(
            f"no kernel here for {attention}{' with shift, dropout, padding, prefix or lengths' if given else ''}; "
            "there is one for keep_prob 1, layouts BSH (0) and BNSD (1) and sparse modes 0 to 4 with a mask at most"
        )
    return attention


@functools.cache
def _compressed_mask() -> Array:
    return np.triu(np.ones((COMPRESSED_MASK_SIZE, COMPRESSED_MASK_SIZE), np.bool_), 1)


def _hidden(attention: _Attention, mask: Optional[Array], q_len: int, kv_len: int) -> Optional[Array]:
    """Where scores are masked out.

    Source: the sparse modes in the documentation of MindSpore's `FlashAttentionScore` and, for mode 4, of torch_npu's
    `npu_fusion_attention`, which says that the band is counted from the bottom right.
    """
    mode = attention.sparse_mode
    ahead = np.arange(kv_len) - np.arange(q_len)[:, np.newaxis]  # how far a key stands after its query
    if mode in (3, 4):
        ahead = ahead - (kv_len - q_len)
    outside = (ahead > attention.next_tokens) | (ahead < -attention.pre_tokens)
    if mode < 2:
        if mode == 0 and mask is not None and np.any((mask == 0) & outside):
            raise ValueError(f"the mask shows keys outside the pre_tokens and next_tokens of {attention}")
        return None if mask is None else mask != 0
    if mask is None or not np.array_equal(mask != 0, _compressed_mask()):
        raise ValueError(f"sparse_mode {mode} needs a causal mask of {COMPRESSED_MASK_SIZE} by {COMPRESSED_MASK_SIZE}")
    return outside if mode == 4 else ahead > 0


def _scores(attention: _Attention, q: Array, k: Array, mask: Optional[Array]) -> Array:
    """Scaled and masked, [B, N, S, S]; k has a head for each of q's."""
    scores = q @ k.swapaxes(-1, -2) * attention.scale
    hidden = _hidden(attention, mask, q.shape[-2], k.shape[-2])
    return scores if hidden is None else np.where(hidden, np.asarray(-np.inf, scores.dtype), scores)


class _Heads(NamedTuple):
    """Operands by head, [B, N, S, D]: keys and values once more for every query head that shares them."""

    q: Array
    keys: Array
    values: Array
    group_size: int


def _heads(attention: _Attention, q: Array, k: Array, v: Array) -> _Heads:
    head_size = attention.head_size(q)
    q, k, v = (attention.heads(x, head_size) for x in (q, k, v))
    group_size = q.shape[1] // k.shape[1]
    return _Heads(q, np.repeat(k, group_size, 1), np.repeat(v, group_size, 1), group_size)


def flash_attention(
    context: Context, q: Array, k: Array, v: Array, shift: None, drop_mask: None, padding_mask: None,
    mask: Optional[Array], prefix: None, q_lengths: None, kv_lengths: None, *settings: Any,
) -> tuple[Array, ...]:
    """Largest score and sum of exponentials of each row (8 times), an undefined result, and the attended values."""
    attention = _attention(settings, shift, drop_mask, padding_mask, prefix, q_lengths, kv_lengths)
    q, keys, values, _ = _heads(attention, q, k, v)
    scores = _scores(attention, q, keys, mask)
    largest = np.max(scores, -1, keepdims=True)
    exponentials = np.exp(scores - largest)
    total = np.sum(exponentials, -1, keepdims=True)
    attended = exponentials / total @ values
    return np.repeat(largest, 8, -1), np.repeat(total, 8, -1), undefined(context.result[2]), attention.joined(attended)


def flash_attention_grad(
    context: Context, q: Array, k: Array, v: Array, grad: Array, shift: None, drop_mask: None, padding_mask: None,
    mask: Optional[Array], largest: Array, total: Array, softmax_in: Any, attended: Array, prefix: None,
    q_lengths: None, kv_lengths: None, *settings: Any,
) -> tuple[Array, ...]:
    """Gradients of flash_attention with respect to q, k and v from what it returned, and an undefined result."""
    attention = _attention(settings, shift, drop_mask, padding_mask, prefix, q_lengths, kv_lengths)
    grad, attended = (attention.heads(x, attention.head_size(q)) for x in (grad, attended))
    q, keys, values, group_size = _heads(attention, q, k, v)
    probabilities = np.exp(_scores(attention, q, keys, mask) - largest[..., :1]) / total[..., :1]
    centred = grad @ values.swapaxes(-1, -2) - np.sum(grad * attended, -1, keepdims=True)
    score_grad = probabilities * centred * attention.scale
    key_grad = score_grad.swapaxes(-1, -2) @ q
    value_grad = probabilities.swapaxes(-1, -2) @ grad
    gradients = (score_grad @ keys, *(_summed_over_groups(x, group_size) for x in (key_grad, value_grad)))
    return *map(attention.joined, gradients), undefined(context.result[3])


def _summed_over_groups(x: Array, group_size: int) -> Array:
    """Sum over the query heads that share a key and value head."""
    return x.reshape(x.shape[0], -1, group_size, *x.shape[2:]).sum(2)


KERNELS: dict[str, Kernel] = {
    "FlashAttentionScore": flash_attention,
    "FlashAttentionScoreGrad": flash_attention_grad,
}
