"""What a token stream's counts say about it."""

from __future__ import annotations

import numpy as np

from mindmodel.data.tokens import TokenFile


def unigram_entropy(tokens: TokenFile, vocab_size: int) -> float:
    """Entropy of the token frequencies: the loss, in nats, of a model that knows only how often each token occurs.

    Args:
        tokens: the stream; 0 for an empty one.
        vocab_size: its ids are below it.
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    for chunk in tokens.chunks():
        counts += np.bincount(chunk, minlength=vocab_size)
    shares = counts[counts > 0] / max(1, tokens.num_tokens)
    return float(-(shares * np.log(shares)).sum())
