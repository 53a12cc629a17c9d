"""Token streams cut into batches: packed and in the global order for training, in sequence for evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, Optional

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


@dataclass(frozen=True, kw_only=True)
class Share:
    """One of `of` equal parts of a global batch: that of a data-parallel rank."""

    index: int = 0
    of: int = 1

    def span(self, count: int) -> tuple[int, int]:
        """First and last plus one of the sequences that are this part's; parts differ by one at most."""
        return count * self.index // self.of, count * (self.index + 1) // self.of


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

    def batch(self, first_sample: int, count: int, share: Share = Share(), rows: Optional[int] = None) -> Batch:
        """A share of the sequences at the global positions first_sample to first_sample + count - 1.

        Epochs follow each other. Which sequences these are does not depend on the number of shares.

        Args:
            rows: sequences that the batch is filled up to, with ids 0 and labels IGNORED; default: none are added.
        """
        begin, end = share.span(count)
        starts = self._order.indices(first_sample, count)[begin:end] * self._seq_len
        read = np.stack([self._tokens.read(start, start + self._seq_len + 1) for start in starts])
        missing = ((0, (rows or len(read)) - len(read)), (0, 0))
        return Batch(
            ids=np.pad(read[:, :-1], missing), labels=np.pad(read[:, 1:], missing, constant_values=IGNORED)
        )


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
