"""What differs between two checkpoints, whatever the layouts were that wrote them."""

from __future__ import annotations

import math
from typing import Any, Iterator

import numpy as np

from mindmodel.checkpoint.load import Checkpoint
from mindmodel.checkpoint.tensors import Tensors


def checkpoint_differences(one: Checkpoint, other: Checkpoint) -> Iterator[str]:
    """A line for each thing that differs: position, recipe, and tensors by name, shape, dtype and bits."""
    here, there = _facts(one), _facts(other)
    for name in dict.fromkeys([*here, *there]):
        if here.get(name) != there.get(name):
            yield f"{name}: {here.get(name)} -> {there.get(name)}"
    for mine, others in ((one.weights(), other.weights()), (one.optimizer(), other.optimizer())):
        yield from _tensor_differences(mine, others)


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Position and recipe, one entry a key."""
    index = checkpoint.index
    facts: dict[str, Any] = {"step": index.step, "samples": index.samples, "tokens": index.tokens}
    for section, keys in index.recipe.items():
        facts.update({f"{section}.{key}": value for key, value in keys.items()} if isinstance(keys, dict) else {})
    return facts


def _tensor_differences(mine: Tensors, others: Tensors) -> Iterator[str]:
    yield from (f"'{name}' is only in the first" for name in mine if name not in others)
    yield from (f"'{name}' is only in the second" for name in others if name not in mine)
    for name in mine:
        if name in others and (difference := _difference(name, mine, others)):
            yield f"'{name}' {difference}"


def _difference(name: str, mine: Tensors, others: Tensors) -> str:
    """Of one tensor; the second is read slice by slice."""
    here, there = mine.entry(name), others.entry(name)
    if (here.shape, here.dtype) != (there.shape, there.dtype):
        return f"is {list(here.shape)} {here.dtype} and {list(there.shape)} {there.dtype}"
    if here.slices.same_numbers(there.slices):
        return ""
    counts, distances = zip(*(apart(mine.block(name, part), others.block(name, part)) for part in there.slices))
    if not any(counts):
        return ""
    return f"differs in {sum(counts)} of {math.prod(here.shape)} numbers, by up to {max(distances):.3g}"


def apart(one: np.ndarray, other: np.ndarray) -> tuple[int, float]:
    """How many numbers of two arrays of one shape and dtype differ in their bits, and by how much at the most."""
    bits = np.dtype(f"u{one.itemsize}")
    differ = one.view(bits) != other.view(bits)
    distances = np.abs(one[differ].astype(np.float64) - other[differ].astype(np.float64))
    return int(np.count_nonzero(differ)), float(np.nanmax(distances, initial=0.0))
