"""Which documents are held out for evaluation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Iterable, Optional

HASH_RANGE = 1 << 64


def text_hash(text: str) -> int:
    """64 bits of a text's BLAKE2b hash."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")


@dataclass(frozen=True, kw_only=True)
class Split:
    """Documents whose hash is below `bound` are held out, except that `moved`, a hash, is on the other side.

    A text is on one side, however often it occurs and wherever it stands.
    """

    bound: int
    moved: Optional[int]

    def is_heldout(self, text: str) -> bool:
        """Whether a document is held out."""
        value = text_hash(text)
        return (value < self.bound) != (value == self.moved)


def split_documents(hashes: Iterable[int], heldout: float) -> Split:
    """Split documents so that neither side is empty, if that can be.

    Args:
        hashes: `text_hash` of each document; at least one.
        heldout: share to hold out, 0 to 1; 0 holds none out.
    """
    smallest, largest = HASH_RANGE, 0
    for value in hashes:
        smallest, largest = min(smallest, value), max(largest, value)
    bound = int(heldout * HASH_RANGE)
    none_heldout = heldout > 0 and smallest >= bound and smallest < largest
    none_to_train = largest < bound
    return Split(bound=bound, moved=smallest if none_heldout or none_to_train else None)
