"""What MindSpore's collective operators compute: from what every rank of a group gives to what each one gets."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Callable, Mapping

import numpy as np

from mindmodel.dryrun.graph import Primitive

Attributes = Mapping[str, Any]
Operands = Mapping[int, tuple[Any, ...]]  # by global rank, in the order of the group

REDUCTIONS: dict[str, Callable[..., Any]] = {
    "sum": np.add,
    "max": np.maximum,
    "min": np.minimum,
    "prod": np.multiply,
}
WORLD_GROUP = "hccl_world_group"
AGREED = ("group", "group_rank_ids", "op", "split_count", "split_dim", "concat_dim", "block_size", "root_rank")


@dataclass(frozen=True, kw_only=True)
class CollectiveCall:
    """One rank's part in one collective that was executed.

    Attributes:
        kind: as `AllReduce`.
        rank: global.
        group: global ranks in the order of the group; of Send and Receive the sender and the receiver.
        shape: of the tensor that this rank gave, of Receive the one it got.
        dtype: declared by the graph: what would be on the wire.
        num_bytes: of that tensor in that dtype.
        node: the graph's name for it.
        scope: the Cells it stands in.
    """

    kind: str
    rank: int
    group: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    node: str
    scope: str


def group_of(primitive: Primitive, num_ranks: int) -> tuple[int, ...]:
    """Global ranks of a collective's group, in its order.

    Raises:
        ValueError: if the primitive does not say, or names a rank that is not there.
    """
    attributes = primitive.attributes
    group = attributes.get("group_rank_ids")
    if group is None and attributes.get("group") == WORLD_GROUP:
        group = tuple(range(num_ranks))
    if not group or len(set(group)) != len(group) or not set(group) <= set(range(num_ranks)):
        raise ValueError(f"group {attributes.get('group')} of ranks {group} is not one of {num_ranks} ranks")
    return group


def signature(primitive: Primitive) -> tuple[Any, ...]:
    """What the ranks of a group must agree on to be at the same collective."""
    return primitive.name, *(primitive.attributes.get(name) for name in AGREED)


def _tensors(operands: Operands) -> list[np.ndarray]:
    """One of each rank, all of the same shape."""
    shapes = {rank: np.shape(tensor) for rank, (tensor,) in operands.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"the ranks give different shapes: {shapes}")
    return [tensor for tensor, in operands.values()]


def _reduced(attributes: Attributes, operands: Operands) -> np.ndarray:
    return np.asarray(functools.reduce(REDUCTIONS[attributes["op"]], _tensors(operands)))


def _all_reduce(attributes: Attributes, operands: Operands) -> list[Any]:
    result = _reduced(attributes, operands)
    return [result.copy() for _ in operands]


def _all_gather(attributes: Attributes, operands: Operands) -> list[Any]:
    return [np.concatenate(_tensors(operands)) for _ in operands]


def _reduce_scatter(attributes: Attributes, operands: Operands) -> list[Any]:
    return np.split(_reduced(attributes, operands), len(operands))


def _all_to_all(attributes: Attributes, operands: Operands) -> list[Any]:
    count, split_dim = attributes["split_count"], attributes["split_dim"]
    if count != len(operands):
        raise ValueError(f"split_count {count} is not the size of the group, {len(operands)}")
    blocks = [np.split(tensor, count, split_dim) for tensor in _tensors(operands)]
    return [np.concatenate(received, attributes["concat_dim"]) for received in zip(*blocks)]


def _all_to_all_v(attributes: Attributes, operands: Operands) -> list[Any]:
    """Operands: flat tensor, numbers of units to send to each rank of the group, numbers expected from each."""
    unit = attributes["block_size"]
    blocks = [np.split(x, np.cumsum(np.multiply(sent, unit))[:-1]) for x, sent, _ in operands.values()]
    results = []
    for (rank, (_, _, expected)), received in zip(operands.items(), zip(*blocks)):
        sizes = [block.size for block in received]
        if sizes != list(np.multiply(expected, unit)):
            raise ValueError(f"rank {rank} expects {list(expected)} units of {unit}, and gets {sizes} elements")
        results.append(np.concatenate(received))
    return results


def _broadcast(attributes: Attributes, operands: Operands) -> list[Any]:
    """Operands: a tuple of tensors. Source: `mindspore.ops.Broadcast`, whose root_rank is global."""
    (tensors,) = operands[attributes["root_rank"]]
    return [tuple(tensor.copy() for tensor in tensors) for _ in operands]


COLLECTIVES: dict[str, Callable[[Attributes, Operands], list[Any]]] = {
    "AllGather": _all_gather,
    "AllReduce": _all_reduce,
    "AllToAll": _all_to_all,
    "AlltoAll": _all_to_all,
    "AlltoAllV": _all_to_all_v,
    "Broadcast": _broadcast,
    "ReduceScatter": _reduce_scatter,
}
