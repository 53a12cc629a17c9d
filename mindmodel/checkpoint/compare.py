"""What differs between two checkpoints, whatever the layouts were that wrote them."""

from __future__ import annotations

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
    count, largest = 0, 0.0
    for part in there.slices:
        one, other = mine.block(name, part), others.block(name, part)
        if one.tobytes() != other.tobytes():
            apart = np.abs(one.astype(np.float64) - other.astype(np.float64))
            count += int(np.count_nonzero(~(apart == 0)))
            largest = max(largest, float(np.nanmax(apart, initial=0.0)))
    return f"differs in {count} of {np.prod(here.shape, dtype=int)} numbers, by up to {largest:.3g}" if count else ""
