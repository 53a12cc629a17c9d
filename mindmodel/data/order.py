"""The one order in which samples are seen: the same for every number of devices, and known at any position at once."""

from __future__ import annotations

import numpy as np

ROUNDS = 8
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class SampleOrder:
    """All samples once per epoch, each epoch in another order.

    The order of an epoch is a keyed permutation of range(num_samples): a Feistel network on the smallest square power
    of two that holds the range, walked on until it lands inside the range. It needs no memory and is defined by integer
    arithmetic alone.

    Args:
        num_samples: samples of an epoch, 1 to 2**62.
        seed: not negative; its lowest 64 bits choose the order.

    Source:
        Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains" (cycle walking); the round function is the
        finalizer of SplitMix64 (Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number Generators").
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        self._num_samples = num_samples
        self._seed = seed
        self._half_bits = max(1, ((num_samples - 1).bit_length() + 1) // 2)

    def indices(self, first: int, count: int) -> np.ndarray:
        """Samples at the global positions first to first + count - 1, int64 [count]; position p is in epoch
        p // num_samples.
        """
        parts = [np.empty(0, dtype=np.int64)]
        while count > 0:
            epoch, place = divmod(first, self._num_samples)
            taken = min(count, self._num_samples - place)
            parts.append(self._permute(epoch, np.arange(place, place + taken, dtype=np.uint64)))
            first, count = first + taken, count - taken
        return np.concatenate(parts)

    def _permute(self, epoch: int, values: np.ndarray) -> np.ndarray:
        keys = self._keys(epoch)
        values = self._feistel(values, keys)
        while (outside := values >= self._num_samples).any():
            values[outside] = self._feistel(values[outside], keys)
        return values.astype(np.int64)

    def _feistel(self, values: np.ndarray, keys: list[np.uint64]) -> np.ndarray:
        bits, mask = np.uint64(self._half_bits), np.uint64((1 << self._half_bits) - 1)
        left, right = values >> bits, values & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        return (left << bits) | right

    def _keys(self, epoch: int) -> list[np.uint64]:
        state = _mix_int(_mix_int(self._seed + _GOLDEN) + epoch)
        return [np.uint64(_mix_int(state + number * _GOLDEN)) for number in range(1, ROUNDS + 1)]


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer; products wrap at 64 bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(_MIX_1)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(_MIX_2)
    return values ^ (values >> np.uint64(31))


def _mix_int(value: int) -> int:
    """The same for one Python integer, taken modulo 2**64."""
    value &= _MASK
    value = (value ^ (value >> 30)) * _MIX_1 & _MASK
    value = (value ^ (value >> 27)) * _MIX_2 & _MASK
    return value ^ (value >> 31)
