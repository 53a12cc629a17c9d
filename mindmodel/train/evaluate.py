"""Cross entropy over held-out tokens."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Iterable, Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindmodel.data.loader import Batch
from mindmodel.parallel.ranks import Ranks
from mindmodel.recipe.schema import Recipe


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Mean cross entropy in nats over `tokens` labels."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))


def compile_evaluation(network: nn.Cell, num_sequences: int, seq_len: int) -> None:
    """Compile for batches of this shape, so that the first one does not seem slow; in PyNative mode, nothing."""
    if ms.get_context("mode") != ms.GRAPH_MODE:
        return
    shape = Tensor(np.zeros((num_sequences, seq_len), np.int32))
    network.compile(shape, shape)


def no_evaluation(recipe: Recipe) -> str:
    """Why a run over several stages cannot evaluate as it trains; empty if it can."""
    if recipe.parallel.pp == 1:
        return ""
    if recipe.model.tied_embeddings:
        return "the last of several stages has no tied embedding to evaluate with"
    return "MindSpore compiles no forward pass of interleaved stages" if recipe.parallel.interleave > 1 else ""


def evaluate(
    network: nn.Cell, batches: Iterable[Batch], ranks: Optional[Ranks] = None, together: bool = False
) -> Evaluation:
    """Mean over all labels that count, of which there must be one.

    Args:
        network: as DecoderLoss, or gives the cross entropy alone.
        batches: all of one shape.
        ranks: that share the batches out; default this process has all.
        together: whether the ranks compute every batch as one instead; the last, of the last stage, has its sum.
    """
    rank, count = (ranks.rank, ranks.count) if ranks and not together else (0, 1)
    total, tokens = 0.0, 0
    for batch in itertools.islice(batches, rank, None, count):
        outputs = network(Tensor(batch.ids), Tensor(batch.labels))
        entropy = outputs[1] if isinstance(outputs, tuple) else outputs
        total += float(entropy.asnumpy())
        tokens += int((batch.labels >= 0).sum())
    if ranks:
        rows = ranks.gather(total, tokens)
        total, tokens = rows[-1] if together else rows.sum(axis=0)
    return Evaluation(loss=total / tokens, tokens=int(tokens))
