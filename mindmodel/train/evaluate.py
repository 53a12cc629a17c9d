"""Cross entropy over held-out tokens."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Iterable, Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindmodel.data.loader import Batch
from mindmodel.models.decoder import DecoderLoss
from mindmodel.parallel.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Mean cross entropy in nats over `tokens` labels."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))


def compile_evaluation(network: DecoderLoss, num_sequences: int, seq_len: int) -> None:
    """Compile for batches of this shape, so that the first one does not seem slow; in PyNative mode, nothing."""
    if ms.get_context("mode") != ms.GRAPH_MODE:
        return
    shape = Tensor(np.zeros((num_sequences, seq_len), np.int32))
    network.compile(shape, shape)


def evaluate(network: DecoderLoss, batches: Iterable[Batch], ranks: Optional[Ranks] = None) -> Evaluation:
    """Mean over all labels that count, of which there must be one.

    Args:
        batches: all of one shape.
        ranks: that share the batches out; default this process has all.
    """
    rank, count = (ranks.rank, ranks.count) if ranks else (0, 1)
    total, tokens = 0.0, 0
    for batch in itertools.islice(batches, rank, None, count):
        _, entropy = network(Tensor(batch.ids), Tensor(batch.labels))
        total += float(entropy.asnumpy())
        tokens += int((batch.labels >= 0).sum())
    if ranks:
        total, tokens = ranks.gather(total, tokens).sum(axis=0)
    return Evaluation(loss=total / tokens, tokens=int(tokens))
