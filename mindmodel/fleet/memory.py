"""A rank's peak memory by kind, in closed form: what MindSpore's compiler plans, without the compiler. Pure Python.

Kernel workspaces, buffers of collectives and MindSpore itself come on top; no dry run sees them either.
Source: which tensors the backward pass keeps follows from the operators of mindmodel/layers/ascend.py; the moment of
the peak was read off MindSpore's memory tracker.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from mindmodel.fleet.rank_sizes import RankSizes
from mindmodel.recipe.schema import Recipe

KINDS = ("weights", "optimizer", "gradients", "activations", "logits", "other")

MASK_BYTES = 2048 * 2048
"""The compressed causal mask of flash attention, uint8."""

PRODUCTS = ("attention.qkv.weight", "attention.out.weight", "mlp.gate_up.weight", "mlp.down.weight")
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
        logits: arrays as large as the logits, float32.
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
        return {kind: getattr(self, kind) for kind in KINDS}

    @property
    def total(self) -> int:
        """Of all kinds."""
        return sum(self.by_kind.values())


def _state(rank: RankSizes) -> MemoryEstimate:
    """What is there through the whole step: parameters, moments, accumulators."""
    own = rank.num_own
    slices = rank.recipe.parallel.shard_optimizer in ("gradients", "parameters")
    summed = own if slices else sum(held.whole for held in rank.held.values())
    return MemoryEstimate(
        weights=4 * own, optimizer=8 * own, gradients=4 * summed if rank.accumulates else 0, other=_constants(rank)
    )


def _constants(rank: RankSizes) -> int:
    """Masks, cosines and sines, token ids.

    Micro-batches share one graph, of whose layers MindSpore copies the constants: for each pass, one pass more where a
    layer is computed again. Stages before the last have each constant twice, and copies of masks too.
    """
    recipe = rank.recipe
    table = rank.value_bytes * recipe.data.seq_len // rank.mesh.cp * (recipe.model.head_size or 0)
    ids = 2 * 4 * recipe.padded_sequences * recipe.data.seq_len
    if not rank.accumulates:
        return MASK_BYTES + 2 * table + ids
    passes = 2 * rank.num_layers + rank.num_recomputed
    if rank.is_last and recipe.parallel.interleave == 1:
        masks, tables = 2, 2 * passes + 2
    else:
        masks, tables = passes, 4 * passes
    zeros = 4 * rank.held["embedding.weight"].own if rank.has_copy and _gathers(rank) else 0
    return masks * MASK_BYTES + tables * table + ids + zeros


def _gathers(rank: RankSizes) -> bool:
    return rank.recipe.parallel.shard_optimizer != "none" and rank.mesh.dp * rank.mesh.cp > 1


def _head_name(rank: RankSizes) -> str:
    return "embedding.weight" if rank.recipe.model.tied_embeddings else "head.weight"


def _layer_weights(rank: RankSizes) -> int:
    """Bytes of all layers' weights as matrix products take them: whole over dp, in the compute dtype."""
    if not _gathers(rank) and rank.value_bytes == 4:
        return 0
    return rank.value_bytes * sum(rank.held[name].whole for name in PRODUCTS)


def _copies(rank: RankSizes) -> int:
    """Bytes of weights that are kept in another form from the forward pass for the backward pass.

    Gathered once for all micro-batches, and then the embedding too; a mere cast is made for each.
    """
    if rank.recipe.parallel.shard_optimizer == "parameters":
        return 0
    head, table, layers = rank.held.get(_head_name(rank)), rank.held.get("embedding.weight"), _layer_weights(rank)
    kept = layers if _gathers(rank) else int(layers * rank.in_flight)
    if rank.is_last and head and layers:
        kept += rank.value_bytes * head.whole
    if table and rank.accumulates and (_gathers(rank) or rank.has_copy):
        kept += 4 * table.whole
    return kept


def _attention_values(rank: RankSizes) -> int:
    """Numbers that a layer's attention keeps: turned queries and keys, values, result; with cp all keys and values."""
    model, cp = rank.recipe.model, rank.mesh.cp
    queries, keys = rank.width(model.num_heads) * (model.head_size or 0), rank.kv_width
    values = 2 * queries + 2 * keys * cp
    return rank.tokens * (values + (queries + keys if model.qk_norm else 0))


def _kept_of_layer(rank: RankSizes, recomputed: bool) -> int:
    """Bytes that a layer keeps of one micro-batch.

    `selective` keeps what goes into attention and SwiGLU; with micro-batches what comes out of them too, for MindSpore
    then computes it again as soon as it is there.
    """
    model, recompute = rank.recipe.model, rank.recipe.parallel.recompute if recomputed else "none"
    hidden, size = model.hidden_size, model.head_size or 0
    if recompute == "full":
        return rank.value_bytes * rank.stream_tokens * hidden
    stream = 2 * hidden * (rank.stream_tokens + rank.tokens)  # residuals, and norms as the products take them
    gate_up = 2 * rank.tokens * rank.width(model.ffn_size)
    if recompute == "selective":
        qkv = rank.tokens * rank.qkv_width
        results = gate_up // 2 + rank.tokens * rank.width(model.num_heads) * size
        return rank.value_bytes * (stream + gate_up + qkv + (results if rank.accumulates else 0))
    statistics = STATISTICS_BYTES * rank.tokens * rank.width(model.num_heads)
    return rank.value_bytes * (stream + gate_up * 3 // 2 + _attention_values(rank)) + statistics


def _kept(rank: RankSizes) -> int:
    """Bytes that all layers keep of one micro-batch; the last stage has the final norm's too."""
    again = rank.num_recomputed
    layers = again * _kept_of_layer(rank, True) + (rank.num_layers - again) * _kept_of_layer(rank, False)
    final = rank.recipe.model.hidden_size * (rank.stream_tokens + rank.tokens) if rank.is_last else 0
    return layers + rank.value_bytes * final


def _logits(rank: RankSizes) -> int:
    """At the loss: exponentials, targets, and two gradients; two arrays more without tp or micro-batches."""
    if not rank.is_last:
        return 0
    copies = 4 if rank.mesh.tp > 1 or rank.accumulates else 6
    return copies * 4 * rank.tokens * rank.vocabulary


def _at_loss(rank: RankSizes, state: MemoryEstimate) -> MemoryEstimate:
    return dataclasses.replace(
        state,
        weights=state.weights + _copies(rank),
        activations=int(rank.in_flight * _kept(rank)),
        logits=_logits(rank),
    )


def _at_head_backward(rank: RankSizes, state: MemoryEstimate) -> MemoryEstimate:
    """The gradient of the output layer's weight, as computed and in float32, beside that of the logits."""
    before, head = _at_loss(rank, state), rank.held.get(_head_name(rank))
    if not rank.is_last or head is None:
        return before
    computed = 0 if rank.value_bytes == 4 else rank.value_bytes
    logits = rank.value_bytes * rank.tokens * rank.vocabulary
    return dataclasses.replace(before, gradients=state.gradients + (4 + computed) * head.whole, logits=logits)


def _at_first_backward(rank: RankSizes, state: MemoryEstimate) -> MemoryEstimate:
    """In the last layer's: its feed-forward part has gradients in place of what it kept, and of its weights."""
    model, before = rank.recipe.model, _at_loss(rank, state)
    ffn, stream = rank.tokens * rank.width(model.ffn_size), rank.stream_tokens * model.hidden_size
    again = _kept_of_layer(rank, False) - _kept_of_layer(rank, rank.num_recomputed == rank.num_layers)
    if rank.accumulates:
        more = again + rank.value_bytes * (2 * ffn + 3 * stream)
        return dataclasses.replace(before, activations=before.activations + more, logits=0)
    products = [rank.held[name] for name in ("mlp.gate_up.weight", "mlp.down.weight")]
    gradients = sum(held.whole + (held.own if _gathers(rank) else 0) for held in products) // rank.num_layers
    more = again - rank.value_bytes * (ffn + stream)
    return dataclasses.replace(before, activations=before.activations + more, gradients=4 * gradients, logits=0)


def _at_last_backward(rank: RankSizes, state: MemoryEstimate) -> MemoryEstimate:
    """In the first layer's: without accumulators all gradients are there."""
    if rank.accumulates:
        return state
    weights = state.weights + _layer_weights(rank) // rank.num_layers
    return dataclasses.replace(
        state, weights=weights, gradients=4 * rank.num_own, activations=_kept_of_layer(rank, False)
    )


def _at_update(rank: RankSizes, state: MemoryEstimate) -> MemoryEstimate:
    """Gradients with nothing that is not finite, beside accumulators; the largest once more, scaled."""
    largest = max(held.own // held.count for held in rank.held.values())
    checked = rank.num_own if rank.recipe.train.check_finite != "none" or not rank.accumulates else 0
    return dataclasses.replace(state, gradients=state.gradients + 4 * (checked + largest))


MOMENTS = (_at_loss, _at_head_backward, _at_first_backward, _at_last_backward, _at_update)
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
