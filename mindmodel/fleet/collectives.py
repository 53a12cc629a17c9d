"""What a rank says to others in a training step, in closed form: count, bytes and dtype of every kind of collective.

Each term names the operator that causes it. The backward pass does the transpose of what the forward pass did: of
AllGather ReduceScatter, of ReduceScatter AllGather, of AllReduce AllReduce, of Send Receive.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Iterable, Iterator, TypeVar

from mindmodel.fleet.rank_sizes import OUTSIDE, TABLE, Held, RankSizes
from mindmodel.parallel.mesh import names
from mindmodel.recipe.schema import AXES, Recipe

BYTES = {"float32": 4, "int32": 4, "bfloat16": 2}
DATA = ("dp", "cp")
"""Axes over which tokens are cut."""


@dataclass(frozen=True, kw_only=True)
class CollectiveTotal:
    """Collectives alike in one step of a rank.

    Attributes:
        kind: AllReduce, AllGather, ReduceScatter, AllToAll, Send or Receive.
        axes: of the mesh in which the ranks differ.
        bytes: of all their tensors.
        dtype: on the wire.
    """

    kind: str
    axes: tuple[str, ...]
    count: int
    bytes: int
    dtype: str


Total = TypeVar("Total", bound=CollectiveTotal)


def added_up(totals: Iterable[Total]) -> list[Total]:
    """Those that differ in nothing but count and bytes as one, in the order in which they come."""
    sums: dict[Total, list[int]] = {}
    for one in totals:
        found = sums.setdefault(dataclasses.replace(one, count=0, bytes=0), [0, 0])
        found[0] += one.count
        found[1] += one.bytes
    return [dataclasses.replace(one, count=count, bytes=num_bytes) for one, (count, num_bytes) in sums.items()]


def collectives_of(recipe: Recipe, rank: int = 0) -> list[CollectiveTotal]:
    """Collectives of a rank's training step, in alphabetical order; bytes are of the tensors that the rank gives, of
    Receive those that it gets.

    Not covered: a parameter that optimizer sharding must leave whole because its first dim does not divide.

    Args:
        recipe: with the vocabulary's size and all degrees filled in.
    Source: graphs of MindSpore 2.9's compiler, executed.
    """
    one = RankSizes(recipe, rank)
    totals = []
    for call in _calls(one):
        axes = tuple(name for name in AXES if name in call.axes and one.mesh.degree(name) > 1)
        if axes and call.count:
            totals.append(dataclasses.replace(call, axes=axes))
    return sorted(added_up(totals), key=lambda total: (total.kind, total.axes, total.dtype))


def _call(kind: str, axes: tuple[str, ...], dtype: str, count: int, size: int) -> CollectiveTotal:
    """`count` times one collective of so many elements; axes of degree 1 included."""
    return CollectiveTotal(kind=kind, axes=axes, count=count, bytes=count * size * BYTES[dtype], dtype=dtype)


def _calls(rank: RankSizes) -> Iterator[CollectiveTotal]:
    times = rank.recipe.parallel.micro_batches
    for call in _of_a_micro_batch(rank):
        yield dataclasses.replace(call, count=times * call.count, bytes=times * call.bytes)
    for name, held in rank.held.items():
        yield from _of_a_parameter(rank, name, held)
    yield from _of_a_tied_embedding(rank)
    yield _call("AllReduce", AXES, "float32", 2, 1)  # GlobalTotals: cross entropy, squares of the gradients


def _of_a_micro_batch(rank: RankSizes) -> Iterator[CollectiveTotal]:
    if rank.stage == 0:
        yield from _embedding(rank)
    yield from _layers(rank)
    yield from _context(rank)
    yield from _copied_heads(rank)
    if rank.is_last:
        yield from _head_and_loss(rank)
    yield from _stage_borders(rank)


def _embedding(rank: RankSizes) -> Iterator[CollectiveTotal]:
    """EmbeddingOverRanks sums rows over tp; transposed in the backward pass."""
    dtype = rank.recipe.train.compute_dtype
    if rank.recipe.parallel.sequence_parallel:
        yield _call("ReduceScatter", ("tp",), dtype, 1, rank.whole_stream)
        yield _call("AllGather", ("tp",), dtype, 1, rank.stream)
    else:
        yield _call("AllReduce", ("tp",), dtype, 2, rank.whole_stream)


def _layers(rank: RankSizes) -> Iterator[CollectiveTotal]:
    """MatMul of attention.out and mlp.down gives a sum over tp; with sequence parallel what goes into MatMul of qkv and
    gate_up is gathered, and again for the backward pass unless it is kept. Transposed in the backward pass. With a
    layer are computed again its gathers, which nobody keeps then, and all sums but that at its end.
    """
    dtype, layers, again = rank.recipe.train.compute_dtype, rank.num_layers, rank.num_repeated
    if rank.recipe.parallel.sequence_parallel:
        yield _call("ReduceScatter", ("tp",), dtype, 4 * layers + again, rank.whole_stream)
        twice = again if rank.keeps_tokens else layers
        yield _call("AllGather", ("tp",), dtype, 4 * layers + 2 * twice, rank.stream)
    else:
        yield _call("AllReduce", ("tp",), dtype, 4 * layers + again, rank.whole_stream)


def _context(rank: RankSizes) -> Iterator[CollectiveTotal]:
    """FlashAttentionScore needs keys and values of all of cp; transposed backwards. Recomputed with a layer."""
    dtype, keys = rank.recipe.train.compute_dtype, rank.tokens * rank.kv_width
    yield _call("AllGather", ("cp",), dtype, 2 * (rank.num_layers + rank.num_repeated), keys)
    yield _call("ReduceScatter", ("cp",), dtype, 2 * rank.num_layers, keys * rank.mesh.cp)


def _copied_heads(rank: RankSizes) -> Iterator[CollectiveTotal]:
    """Ranks with copies of a KV head project parts of its group, which Split needs whole; transposed backwards, which
    sums the copies' gradients. Recomputed with a layer.
    """
    if rank.kv_copies == 1:
        return
    dtype, rows = rank.recipe.train.compute_dtype, rank.tokens * rank.qkv_width
    yield _call("AllGather", ("tp",), dtype, rank.num_layers + rank.num_repeated, rows)
    yield _call("ReduceScatter", ("tp",), dtype, rank.num_layers, rows * rank.kv_copies)


def _head_and_loss(rank: RankSizes) -> Iterator[CollectiveTotal]:
    """LogitsInSlices: tokens gathered as those of other columns; for each slice the largest, the sum of
    exponentials and the label's logit; two gradients. SumExt of the loss, and of the z-loss, over all tokens:
    transposed where micro-batches add up. A later stage is fed its labels as they are cut by sequence, and the loss
    wants them whole.
    """
    train, tokens = rank.recipe.train, rank.tokens
    if rank.recipe.parallel.sequence_parallel:
        yield _call("AllGather", ("tp",), train.compute_dtype, 1 if rank.keeps_tokens else 2, rank.stream)
        yield _call("ReduceScatter", ("tp",), train.compute_dtype, 1, rank.whole_stream)
    yield _call("AllReduce", ("tp",), "float32", 3 * rank.loss_slices, tokens // rank.loss_slices)
    yield _call("AllReduce", ("tp",), "float32", 2, tokens)
    sums = 2 if train.z_loss else 1
    yield _call("AllReduce", DATA, "float32", 2 * sums if rank.accumulates else sums, 1)
    if rank.mesh.pp > 1:
        yield _call("AllGather", DATA, "int32", 1, tokens)


def _stage_borders(rank: RankSizes) -> Iterator[CollectiveTotal]:
    """The residual stream between chunks of layers, and its gradient back."""
    pp, chunks = rank.mesh.pp, rank.recipe.parallel.interleave
    parts = [chunk * pp + rank.stage for chunk in range(chunks)]
    after = sum(part < pp * chunks - 1 for part in parts)
    before = sum(part > 0 for part in parts)
    for kind in ("Send", "Receive"):
        yield _call(kind, ("pp",), rank.recipe.train.compute_dtype, after + before, rank.stream)


def _of_a_parameter(rank: RankSizes, name: str, held: Held) -> Iterator[CollectiveTotal]:
    """Gradients are summed over the ranks that hold copies: whole, or where the optimizer is sharded each rank its
    slice, in float32 unless the collectives are our own. Weights are then gathered, after their Cast where that is the
    first operator on them.
    """
    level, dtype = rank.recipe.parallel.shard_optimizer, rank.recipe.train.compute_dtype
    path = name if name in OUTSIDE else f"layers.0.{name}"
    cut_over = {axis for dim in rank.plan.axes_of(path) for axis in names(dim)}
    axes = tuple(axis for axis in ("dp", "cp", "tp") if axis not in cut_over)
    whole, own = held.whole // held.count, held.own // held.count
    is_table = name == TABLE
    if level == "none":
        is_copy = is_table and rank.has_copy  # its gradient goes to the first stage
        yield _call("AllReduce", axes, "float32", 0 if is_copy else held.count, whole)
        return
    gathered = "float32" if is_table and not rank.has_own_embedding else dtype
    summed = dtype if _is_summed_in_compute(rank, name) else "float32"
    yield _call("ReduceScatter", axes, summed, _num_scatters(rank, name) * held.count, whole)
    yield _call("AllGather", axes, gathered, _num_gathers(rank, name, held), own)


def _is_summed_in_compute(rank: RankSizes, name: str) -> bool:
    """Whether WeightOverDp holds it: all but norms."""
    return rank.sums_in_compute and "norm" not in name


def _num_scatters(rank: RankSizes, name: str) -> int:
    """Of a gradient in a step. Those of a tied embedding and of its head are apart where each sums its own."""
    times = rank.recipe.parallel.micro_batches if rank.slices_accumulators else 1
    return 2 * times if name == TABLE and _uses_table_twice(rank) else times


def _num_gathers(rank: RankSizes, name: str, held: Held) -> int:
    """Of the weights of a name in a step: once, and where they are sharded too in each forward and backward pass.

    LogitsInSlices keeps the head's weight from one to the other, and the table's gradient does not need the table.
    WeightOverDp gathers again what is computed again.
    """
    parallel = rank.recipe.parallel
    if parallel.shard_optimizer == "parameters":
        return parallel.micro_batches * held.count * (1 if name in (TABLE, "head.weight") else 2)
    again = rank.num_repeated if _is_summed_in_compute(rank, name) and name not in OUTSIDE else 0
    return held.count + again


def _uses_table_twice(rank: RankSizes) -> bool:
    """Whether a tied embedding's two gradients, of its rows and of the head, are summed over ranks one by one."""
    parallel = rank.recipe.parallel
    if not rank.recipe.model.tied_embeddings or rank.mesh.pp > 1:
        return False
    return rank.sums_in_compute or parallel.shard_optimizer == "gradients" and rank.accumulates


def _of_a_tied_embedding(rank: RankSizes) -> Iterator[CollectiveTotal]:
    """Sent from the first stage to the last once a step, and its gradient back."""
    if rank.recipe.model.tied_embeddings and rank.mesh.pp > 1 and (rank.stage == 0 or rank.is_last):
        slice_size = rank.held[TABLE].own
        for kind in ("Send", "Receive"):
            yield _call(kind, ("pp",), "float32", 1, slice_size)
