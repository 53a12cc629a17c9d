"""Token streams cut into batches: packed and in the global order for training, in sequence for evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator

import numpy as np

from mindmodel.data.order import SampleOrder
from mindmodel.data.tokens import TokenFile
from mindmodel.errors import DataError

IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Sequences and what is to be predicted: ids and labels, int32 [n, seq_len]; a label IGNORED does not count."""

    ids: np.ndarray
    labels: np.ndarray


class TrainBatches:
    """Training sequences. The stream is packed: sample i is tokens i * seq_len to (i + 1) * seq_len - 1, and its labels
    are the tokens one further; the last tokens that fill no sequence are left out.

    Args:
        tokens: the stream.
        seq_len: tokens of a sequence.
        seed: of the order.

    Raises:
        DataError: if the stream is too short for one sequence.
    """

    def __init__(self, tokens: TokenFile, seq_len: int, seed: int) -> None:
        self._tokens = tokens
        self._seq_len = seq_len
        self.num_samples = max(0, tokens.num_tokens - 1) // seq_len
        if not self.num_samples:
            raise DataError(
                f"data.seq_len: one sequence of {seq_len} tokens and its labels need {seq_len + 1} training tokens; "
                f"there are {tokens.num_tokens}. Use more text or a smaller seq_len."
            )
        self._order = SampleOrder(self.num_samples, seed)

    def batch(self, first_sample: int, count: int) -> Batch:
        """The sequences at the global positions first_sample to first_sample + count - 1; epochs follow each other."""
        starts = self._order.indices(first_sample, count) * self._seq_len
        rows = np.stack([self._tokens.read(start, start + self._seq_len + 1) for start in starts])
        return Batch(ids=np.ascontiguousarray(rows[:, :-1]), labels=np.ascontiguousarray(rows[:, 1:]))


def heldout_batches(tokens: TokenFile, seq_len: int, count: int) -> Iterator[Batch]:
    """The stream in order, every token but the first once as a label; nothing if it has fewer than two tokens.

    Args:
        tokens: the stream.
        seq_len: tokens of a sequence.
        count: sequences of a batch. The last batch is filled up with ids 0 and labels IGNORED.
    """
    size = seq_len * count
    num_labels = max(0, tokens.num_tokens - 1)
    for start in range(0, num_labels, size):
        window = tokens.read(start, min(start + size, num_labels) + 1)
        ids, labels = np.zeros(size, dtype=np.int32), np.full(size, IGNORED, dtype=np.int32)
        ids[:window.size - 1], labels[:window.size - 1] = window[:-1], window[1:]
        yield Batch(ids=ids.reshape(count, seq_len), labels=labels.reshape(count, seq_len))
