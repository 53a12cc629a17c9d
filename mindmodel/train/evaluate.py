"""Cross entropy over held-out tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Iterable, Optional

from mindspore import Tensor

from mindmodel.data.loader import Batch
from mindmodel.models.decoder import DecoderLoss


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Mean cross entropy in nats over `tokens` labels."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))


def evaluate(network: DecoderLoss, batches: Iterable[Batch]) -> Optional[Evaluation]:
    """Mean over all labels that count; None when there are none. All batches must have one shape."""
    total, tokens = 0.0, 0
    for batch in batches:
        _, entropy = network(Tensor(batch.ids), Tensor(batch.labels))
        total += float(entropy.asnumpy())
        tokens += int((batch.labels >= 0).sum())
    return Evaluation(loss=total / tokens, tokens=tokens) if tokens else None
