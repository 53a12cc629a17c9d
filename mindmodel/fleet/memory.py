"""A rank's peak memory by kind, in closed form: what MindSpore's compiler plans, without the compiler. Pure Python.

Kernel workspaces, buffers of collectives and MindSpore itself come on top; no dry run sees them either.
Source: which tensors the backward pass keeps follows from the operators of mindmodel/layers/ascend.py and
mindmodel/parallel/local_layers.py; the moments of the peak were read off MindSpore's memory tracker.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from mindmodel.fleet.rank_sizes import OUTSIDE, TABLE, Held, RankSizes
from mindmodel.recipe.schema import Recipe

MASK_BYTES = 2048 * 2048
"""The compressed causal mask of flash attention, uint8."""

GATE_UP, DOWN = "mlp.gate_up.weight", "mlp.down.weight"
PRODUCTS = ("attention.qkv.weight", "attention.out.weight", GATE_UP, DOWN)
"""A layer's matrix products."""

STATISTICS_BYTES = 2 * 8 * 4
"""Per token and head: flash attention's largest and sum, float32, each in eight copies."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of one rank at the peak of a step.

    Attributes:
        weights: float32, and their copies in the compute dtype or gathered.
        optimizer: both moments, float32.
        gradients: float32; with micro-batches their accumulators.
        activations: kept for the backward pass.
        logits: in the compute dtype, their gradient, and slices of both in float32.
        other: masks, rotary tables, token ids.
    """

    weights: int = 0
    optimizer: int = 0
    gradients: int = 0
    activations: int = 0
    logits: int = 0
    other: int = 0

    @property
    def by_kind(self) -> dict[str, int]:
        """Bytes of every kind."""
        return dict(vars(self))

    @property
    def total(self) -> int:
        """Of all kinds."""
        return sum(vars(self).values())


KINDS = tuple(field.name for field in dataclasses.fields(MemoryEstimate))


def _state(rank: RankSizes) -> MemoryEstimate:
    """What is there through the whole step: parameters, moments, accumulators."""
    own = rank.num_own
    summed = own if rank.slices_accumulators else sum(held.whole for held in rank.held.values())
    return MemoryEstimate(
        weights=4 * own, optimizer=8 * own, gradients=4 * summed if rank.accumulates else 0, other=_constants(rank)
    )


def _constants(rank: RankSizes) -> int:
    """Masks, cosines and sines, token ids.

    Micro-batches share one graph, and each layer in it has tables of its own, twice where it is computed again; in
    stages before the last masks too, and tables for queries and for keys.
    """
    recipe = rank.recipe
    table = rank.value_bytes * recipe.data.seq_len // rank.mesh.cp * rank.head_size
    ids = 2 * 4 * recipe.padded_sequences * recipe.data.seq_len
    if not rank.accumulates or rank.is_alone:
        return MASK_BYTES + 2 * table + ids
    layers, again = rank.num_layers, rank.num_repeated
    if rank.is_last and recipe.parallel.interleave == 1:
        passes = 2 if again else 1
        masks, tables = passes, layers + again + passes
    else:
        masks, tables = layers + again, 2 * (layers + again)
    zeros = 4 * rank.held[TABLE].own if rank.has_copy and rank.gathers_weights else 0
    return masks * MASK_BYTES + tables * table + ids + zeros


def _layer_weights(rank: RankSizes) -> int:
    """Bytes of all layers' weights as matrix products take them: whole over dp, in the compute dtype."""
    if not rank.gathers_weights and rank.value_bytes == 4:
        return 0
    return rank.value_bytes * sum(rank.held[name].whole for name in PRODUCTS)


def _copies(rank: RankSizes) -> int:
    """Bytes of weights that are kept in another form from the forward pass for the backward pass.

    MindSpore gathers once for all micro-batches, and then the embedding too; a mere cast is made for each. Made again
    for the backward pass are casts and our own gathers in layers that are recomputed, and all of a layer where weights
    are sharded too.
    """
    level, head, table = rank.recipe.parallel.shard_optimizer, rank.held.get(rank.head_name), rank.held.get(TABLE)
    layers = _layer_weights(rank)
    kept = rank.value_bytes * head.whole if rank.is_last and head and layers else 0
    if level == "parameters":
        return kept
    if not rank.gathers_weights or rank.sums_in_compute:
        layers = layers * (rank.num_layers - rank.num_repeated) // rank.num_layers
    kept += layers if rank.gathers_weights else int(layers * rank.in_flight)
    if table and rank.accumulates and (rank.gathers_weights or rank.has_copy):
        kept += (rank.value_bytes if rank.has_own_embedding else 4) * table.whole
    return kept


def _attention_values(rank: RankSizes) -> int:
    """Numbers that a layer's attention keeps: turned queries and keys, values, result; with cp all keys and values."""
    values = 2 * rank.q_width + 2 * rank.kv_width * rank.mesh.cp
    return rank.tokens * (values + (rank.q_width + rank.kv_width if rank.recipe.model.qk_norm else 0))


def _kept_of_layer(rank: RankSizes, recompute: str) -> int:
    """Bytes that a layer keeps of one micro-batch."""
    if recompute == "full":
        return rank.value_bytes * rank.stream
    return _in_backward(rank, recompute)


def _in_backward(rank: RankSizes, recompute: str) -> int:
    """Bytes of a layer of one micro-batch when its backward pass begins; `full` has it all again."""
    statistics = STATISTICS_BYTES * rank.tokens * rank.width(rank.recipe.model.num_heads)
    streams = 2 * (rank.stream + _inputs(rank, recompute))
    ffn = (2 if recompute == "selective" else 3) * _ffn(rank)
    return rank.value_bytes * (streams + ffn + _attention_values(rank)) + statistics


def _inputs(rank: RankSizes, recompute: str) -> int:
    """Numbers of the input of a layer's first product, and of SwiGLU's, when its backward pass begins: as norms give
    them, or gathered. `selective` drops the former.
    """
    if recompute == "full" or rank.keeps_tokens:
        return rank.whole_stream
    return rank.stream if recompute == "none" else 0


def _kept_of_layers(rank: RankSizes) -> int:
    """Bytes that all layers keep of one micro-batch."""
    again, how = rank.num_recomputed, rank.recipe.parallel.recompute
    return again * _kept_of_layer(rank, how) + (rank.num_layers - again) * _kept_of_layer(rank, "none")


def _at_loss(rank: RankSizes, state: MemoryEstimate) -> MemoryEstimate:
    """In the backward pass of its last slice, or where the slices of the logits' gradient are joined.

    The last stage has the residuals of the final norm too, and what it gave, as the head's product takes it.
    """
    final = rank.stream + rank.whole_stream if rank.is_last else 0
    return dataclasses.replace(
        state,
        weights=state.weights + _copies(rank),
        activations=int(rank.in_flight * (_kept_of_layers(rank) + rank.value_bytes * final)),
        logits=int(_logit_bytes(rank) * rank.tokens * rank.vocabulary) if rank.is_last else 0,
    )


def _logit_bytes(rank: RankSizes) -> float:
    """Of each logit: itself where it is kept, its gradient, and of a slice two arrays in float32; or of its gradient
    the slices and the whole.

    One device has all in float32: it, less the largest, its exponential, the target and a gradient; with micro-batches
    exponential and gradients only.
    """
    if rank.is_alone:
        return 4 * (4 if rank.accumulates else 5)
    kept = rank.value_bytes if rank.recipe.parallel.recompute == "none" else 0
    return max(kept + rank.value_bytes + 2 * 4 / rank.loss_slices, 2 * rank.value_bytes)


def _summed(rank: RankSizes, held: Held) -> int:
    """Bytes of a layer's gradient as it is summed over ranks: what goes in, and what comes out."""
    value_bytes = rank.value_bytes if rank.sums_in_compute else 4
    return value_bytes * (held.whole + (held.own if rank.num_data_ranks > 1 else 0)) // held.count


def _added(rank: RankSizes, held: Held) -> int:
    """Bytes of a layer's gradient from its product to what keeps it, which adds it up as it is computed where no ranks
    sum it before.
    """
    computed = rank.value_bytes * held.whole // held.count
    if rank.accumulates and not rank.slices_accumulators:
        return computed
    return _summed(rank, held) if rank.sums_in_compute else max(_cast(rank, held), _summed(rank, held))


def _cast(rank: RankSizes, held: Held) -> int:
    """Bytes of a layer's gradient as computed, and in float32 where that is another dtype."""
    value_bytes = 4 if rank.value_bytes == 4 else rank.value_bytes + 4
    return value_bytes * held.whole // held.count


def _at_head_backward(rank: RankSizes, state: MemoryEstimate) -> MemoryEstimate:
    """The gradient of the output layer's weight beside that of the logits. With micro-batches that of the tokens has
    been computed and, where they were gathered, scattered.
    """
    before, head = _at_loss(rank, state), rank.held.get(rank.head_name)
    if not rank.is_last or head is None:
        return before
    logits = rank.value_bytes * rank.tokens * rank.vocabulary
    is_scattered = rank.recipe.parallel.sequence_parallel and rank.accumulates and not rank.slices_accumulators
    values = rank.whole_stream + rank.stream if is_scattered else 0
    return _with(dataclasses.replace(before, logits=logits), rank, values, _added(rank, head))


def _recompute_of_last_layer(rank: RankSizes) -> str:
    """Those that are recomputed are the first."""
    return rank.recipe.parallel.recompute if rank.num_recomputed == rank.num_layers else "none"


def _in_last_layer(rank: RankSizes, state: MemoryEstimate) -> MemoryEstimate:
    """When the last layer's backward pass begins: what layers keep, and all of it where it is recomputed; the gradient
    of the residuals, and where another stage follows also what is sent there and what comes back.

    Copies of the layer's weights are there. Without micro-batches they go when they are used, here the head's and that
    of the last product.
    """
    before, kept = _at_loss(rank, state), int(rank.in_flight * _kept_of_layers(rank))
    if _recompute_of_last_layer(rank) == "full":
        kept += _in_backward(rank, "full") - _kept_of_layer(rank, "full")
    kept += rank.value_bytes * rank.stream * (1 if rank.is_last else 3)
    copies = _copies(rank) + (_layer_weights(rank) // rank.num_layers if _copies_again(rank) else 0)
    if not rank.accumulates:
        head, down = rank.held[rank.head_name], rank.held[DOWN]
        copies -= rank.value_bytes * (head.whole + down.whole // rank.num_layers)
    return dataclasses.replace(before, weights=state.weights + max(copies, 0), activations=kept, logits=0)


def _copies_again(rank: RankSizes) -> bool:
    """Whether copies of the last layer's weights are made again for its backward pass, all at a time."""
    return _recompute_of_last_layer(rank) == "full" and (not rank.gathers_weights or rank.sums_in_compute)


def _at_last_swiglu(rank: RankSizes, state: MemoryEstimate) -> MemoryEstimate:
    """Gradients of its result, which is gone, and of both its sides. Where a layer is recomputed and another stage
    follows, the gradient of the weight after it comes first, beside that of its result.
    """
    before, recompute = _in_last_layer(rank, state), _recompute_of_last_layer(rank)
    more = (3 if recompute == "selective" else 2) * _ffn(rank)
    if not rank.accumulates:
        products = [DOWN] if recompute != "full" else []
        gradients = sum(_summed(rank, rank.held[name]) for name in [rank.head_name, *products])
        return _with(before, rank, more, gradients)
    if recompute == "full" and not rank.is_last:
        return _with(before, rank, _ffn(rank) + rank.whole_stream, _added(rank, rank.held[DOWN]))
    if recompute != "none":
        more += rank.whole_stream  # the layer's gradient, as its last product takes it
    summed = _summed(rank, rank.held[DOWN]) if rank.slices_accumulators else 0
    return _with(before, rank, more, summed)


def _at_last_gate_up(rank: RankSizes, state: MemoryEstimate) -> MemoryEstimate:
    """The product before it, where SwiGLU's result is gone: gradients of its weight and, where tokens are gathered, of
    its input, which may be there again.

    Without micro-batches the gradient of its input is there too, and that of its weight done, for which alone what the
    norm gave was kept; and the head's sum is in use where the backward pass waits for other ranks before a layer is
    recomputed.
    """
    before, recompute = _in_last_layer(rank, state), _recompute_of_last_layer(rank)
    gone = 0 if recompute == "selective" else _ffn(rank)
    if rank.accumulates:
        is_gathered = rank.recipe.parallel.sequence_parallel and not rank.slices_accumulators
        arrays = 0 if not is_gathered else 1 if _inputs(rank, recompute) == rank.whole_stream else 2
        return _with(before, rank, arrays * rank.whole_stream - gone, _added(rank, rank.held[GATE_UP]))
    head = rank.held[rank.head_name]
    waits = recompute == "full" and not rank.sums_in_compute and rank.mesh.tp > 1
    gradients = _waiting(rank) or (_summed(rank, head) if waits else 4 * head.own)
    values = rank.whole_stream - _inputs(rank, recompute) - gone
    summed = _with(before, rank, values, gradients + _feed_forward_gradients(rank))
    return _cast_or_summed(rank, summed)


def _with(before: MemoryEstimate, rank: RankSizes, values: int, gradients: int) -> MemoryEstimate:
    """More numbers of activations, and more bytes of gradients."""
    activations = before.activations + rank.value_bytes * values
    return dataclasses.replace(before, activations=activations, gradients=before.gradients + gradients)


def _ffn(rank: RankSizes) -> int:
    """Numbers that SwiGLU gives."""
    return rank.tokens * rank.width(rank.recipe.model.ffn_size)


def _feed_forward_gradients(rank: RankSizes) -> int:
    """Bytes of those of a layer's weights there, as they are summed."""
    return sum(_summed(rank, rank.held[name]) for name in (GATE_UP, DOWN))


def _waiting(rank: RankSizes) -> int:
    """Bytes of a tied table's gradient from the output layer, until that of its rows is added; else 0."""
    if not rank.recipe.model.tied_embeddings:
        return 0
    return 4 * (rank.held[TABLE].own if rank.sums_in_compute else rank.held[TABLE].whole)


def _cast_or_summed(rank: RankSizes, summed: MemoryEstimate) -> MemoryEstimate:
    """The higher of the moment when the gradient before SwiGLU is summed, and the one before that, when it is cast and
    its input's is not there yet.
    """
    gate_up = rank.held[GATE_UP]
    if rank.sums_in_compute:
        return summed
    cast = _with(summed, rank, -rank.whole_stream, _cast(rank, gate_up) - _summed(rank, gate_up))
    return max(summed, cast, key=lambda estimate: estimate.total)


def _at_first_layer(rank: RankSizes, state: MemoryEstimate) -> MemoryEstimate:
    """The first layer's product before SwiGLU, without micro-batches: gradients of all other layers are there, ready
    for the optimizer. Where it is recomputed, tokens for attention's first product have been gathered.
    """
    if rank.accumulates:
        return state
    layers = [held for name, held in rank.held.items() if name not in OUTSIDE]
    done = rank.num_own - rank.held[TABLE].own - sum(held.own // held.count for held in layers)
    down = rank.value_bytes * rank.held[DOWN].whole
    gathered = rank.whole_stream + (rank.whole_stream - rank.stream if rank.num_repeated else 0)
    summed = dataclasses.replace(
        state,
        weights=state.weights + max(_layer_weights(rank) - down, 0) // rank.num_layers,
        gradients=4 * done + _waiting(rank) + _feed_forward_gradients(rank),
        activations=_kept_of_layer(rank, "none") + rank.value_bytes * (gathered - _ffn(rank)),
    )
    return _cast_or_summed(rank, summed)


def _at_embedding(rank: RankSizes, state: MemoryEstimate) -> MemoryEstimate:
    """Without micro-batches, the table's gradient, beside all others; that of a tied one is the sum of two. Of the
    first layer what is summed in the compute dtype is still in use, where no collective of tp has been waited for.
    """
    if rank.accumulates:
        return state
    table, others = rank.held[TABLE], rank.num_own - rank.held[TABLE].own
    computed = max(_cast(rank, table) if rank.has_own_embedding else 4 * table.whole, _summed(rank, table))
    if rank.recipe.model.tied_embeddings:
        computed = computed + 4 * table.own if rank.sums_in_compute else 3 * 4 * table.whole
    if rank.sums_in_compute and rank.mesh.tp == 1:
        products = [rank.held[name] for name in PRODUCTS]
        computed += sum(rank.value_bytes * held.whole - 2 * held.own for held in products) // rank.num_layers
    return dataclasses.replace(state, gradients=4 * others + computed)


def _at_update(rank: RankSizes, state: MemoryEstimate) -> MemoryEstimate:
    """Gradients with nothing that is not finite, beside accumulators; the largest once more, scaled."""
    largest = max(held.own // held.count for held in rank.held.values())
    checked = rank.num_own if rank.recipe.train.check_finite != "none" or not rank.accumulates else 0
    return dataclasses.replace(state, gradients=state.gradients + 4 * (checked + largest))


MOMENTS = (_at_loss, _at_head_backward, _at_last_swiglu, _at_last_gate_up, _at_first_layer, _at_embedding, _at_update)
"""When a step's memory can be highest."""


def estimate_memory(recipe: Recipe, rank: int = 0) -> MemoryEstimate:
    """Peak memory of a rank.

    Args:
        recipe: with the vocabulary's size, derived defaults and all degrees filled in.
        rank: in the mesh.
    """
    one = RankSizes(recipe, rank)
    state = _state(one)
    return max((moment(one, state) for moment in MOMENTS), key=lambda estimate: estimate.total)
