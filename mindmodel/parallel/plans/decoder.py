"""The plan of the dense decoder: heads, feed-forward width and vocabulary over tp; sequences over dp; tokens over cp.

Paths begin at DecoderLoss: `decoder` and `loss`.
"""

from __future__ import annotations

from mindmodel.parallel.mesh import Axes, Axis, balanced_stages, mesh_of
from mindmodel.parallel.plan import (
    CopyRule,
    Cuts,
    LayoutRule,
    LocalRule,
    ParameterRule,
    Plan,
    RecomputeRule,
    SeenRule,
    StageRule,
)
from mindmodel.recipe.schema import ModelSection, ParallelSection

MOST_SLICES, ALL_SLICES = 8, 256
"""Of the logits of a micro-batch, and of all micro-batches: with 64 and 8 slices each a compilation takes 30 percent
longer than with 4."""

TOKENS: Axis = ("dp", "cp")
"""Of the dim [B S] of flattened activations: with cp, a rank and micro-batch has one sequence."""

TP = "tp"
EMBEDDING, LOSS = "decoder.embedding.embedding", "loss.head_loss"
HEAD = f"{LOSS}.logits"
LAYER = "decoder.layers.*"
ATTENTION = f"{LAYER}.attention.causal_attention"

COLUMNS = (f"{LAYER}.attention.qkv.linear", f"{LAYER}.mlp.gate_up.linear")
"""Products whose outputs are cut over tp."""
ROWS = (f"{LAYER}.attention.out.linear", f"{LAYER}.mlp.down.linear")
"""Products whose inputs are cut over tp."""

SEEN = ("decoder.embedding", LAYER, "decoder.norm")
"""What gives the residual stream, and the output layer's input."""

NORMS = (".attention_norm.residual_norm", ".mlp_norm.residual_norm")
SWIGLU = (".mlp.swiglu.swiglu", ".mlp.swiglu.flat")
"""With norms, what of a layer is cheap to compute again."""


def decoder_plan(model: ModelSection, parallel: ParallelSection) -> Plan:
    """The plan for a recipe.

    Args:
        model: the architecture, all sizes filled in.
        parallel: the layout, all degrees numbers.
    """
    residual: Axis = ("dp", "cp", "tp") if parallel.sequence_parallel else TOKENS
    layouts = (
        *_gathered_weights(parallel),
        *_embedding(parallel, residual),
        *_blocks(model, parallel, residual),
        *_head_and_loss(parallel, residual),
    )
    return Plan(
        layouts=layouts,
        parameters=_parameters(model),
        stages=_stages(model, parallel),
        recompute=_recompute(model, parallel),
        copies=_copies(model, parallel),
        local=_local(parallel),
        seen=tuple(SeenRule(path=path, axes=(residual, None)) for path in SEEN),
    )


def kv_copies(model: ModelSection, parallel: ParallelSection) -> int:
    """How many ranks of tp share a KV head, each with a copy; 1 where there are as many heads as ranks, or more."""
    return max(1, mesh_of(parallel).tp // (model.num_kv_heads or model.num_heads))


def _copies(model: ModelSection, parallel: ParallelSection) -> tuple[CopyRule, ...]:
    copies = kv_copies(model, parallel)
    return (CopyRule(path=ATTENTION, copies=copies),) if copies > 1 else ()


def _rule(path: str, *inputs: Cuts, out: Cuts | None = None) -> LayoutRule:
    return LayoutRule(path=path, inputs=inputs, outputs=(out,) if out else None)


def _norm(path: str, residual: Axis) -> LayoutRule:
    return _rule(f"{path}.rms_norm", (residual, None), (None,))


def _columns(path: str) -> LayoutRule:
    """A product whose outputs are cut."""
    return _rule(path, (TOKENS, None), (TP, None))


def _gathered(path: str, residual: Axis) -> LayoutRule:
    """Tokens, gathered over tp."""
    return _rule(path, (residual, None), out=(TOKENS, None))


def _rows(path: str, residual: Axis) -> LayoutRule:
    """A product whose inputs are cut, so that its result is a sum over tp: whole, or cut by tokens."""
    return _rule(path, (TOKENS, TP), (None, TP), out=(residual, None))


def _local(parallel: ParallelSection) -> tuple[LocalRule, ...]:
    """Collectives of our own: where the compiler's are in float32, or cannot be done again in the backward pass."""
    found = [LocalRule(path=HEAD, layer="logits")]
    if _own_embedding(parallel):
        found.append(LocalRule(path=EMBEDDING, layer="embedding"))
    if parallel.sequence_parallel:
        found += [LocalRule(path=path, layer="linear of tokens") for path in COLUMNS]
    if _norms_wait_for_gradients(parallel):
        found += [LocalRule(path=f"{LAYER}{path}", layer="norm apart") for path in NORMS]
    if sums_in_compute_dtype(parallel):
        paths = ROWS if parallel.sequence_parallel else COLUMNS + ROWS
        found += [LocalRule(path=path, layer="linear") for path in paths]
    return tuple(found)


def most_logit_slices(parallel: ParallelSection) -> int:
    """Into how many parts a micro-batch's tokens fall at most, of which one at a time has its logits in float32."""
    return max(1, min(MOST_SLICES, ALL_SLICES // parallel.micro_batches))


def sums_in_compute_dtype(parallel: ParallelSection) -> bool:
    """Whether ranks with copies of a weight sum its gradients in the compute dtype."""
    mesh = mesh_of(parallel)
    return parallel.reduce_dtype == "compute" and mesh.dp * mesh.cp > 1


def _norms_wait_for_gradients(parallel: ParallelSection) -> bool:
    """Whether norms are computed again with weights gathered again; not so where micro-batches share a graph."""
    alone = mesh_of(parallel).pp == parallel.micro_batches == 1
    return alone and parallel.shard_optimizer == "parameters" and parallel.recompute != "none"


def sees_activations(parallel: ParallelSection) -> bool:
    """Whether sums of squares can be found: not of layers that are computed again where micro-batches share a graph."""
    return parallel.recompute != "full" or mesh_of(parallel).pp == parallel.micro_batches == 1


def _own_embedding(parallel: ParallelSection) -> bool:
    return mesh_of(parallel).tp > 1 or sums_in_compute_dtype(parallel)


def _gathered_weights(parallel: ParallelSection) -> tuple[LayoutRule, ...]:
    """Weights that are gathered over the ranks that hold copies, by our own collectives."""
    if not sums_in_compute_dtype(parallel):
        return ()
    held: Cuts = ((TP, "dp", "cp"), None)
    columns = (_rule(f"{path}.weight.whole", held, out=(TP, None)) for path in (EMBEDDING, HEAD, *COLUMNS))
    return (*columns, *(_rule(f"{path}.weight.whole", (TOKENS, TP), out=(None, TP)) for path in ROWS))


def _embedding(parallel: ParallelSection, residual: Axis) -> tuple[LayoutRule, ...]:
    if _own_embedding(parallel):
        return (_rule(f"{EMBEDDING}.rows", (TOKENS,), (TP, None), out=(residual, None)),)
    return (_rule(f"{EMBEDDING}.gather", (TP, None), (TOKENS,), out=(residual, None)),)


def _blocks(model: ModelSection, parallel: ParallelSection, residual: Axis) -> tuple[LayoutRule, ...]:
    copies = kv_copies(model, parallel)
    groups: Cuts = ("dp", "cp", mesh_of(parallel).tp // copies)  # [B, S, KV heads, ...], each with its query heads
    heads: Axes = ("dp", "cp", TP, None)  # [B, S, heads, head_size]
    table: Axes = (None, "cp", None, None)
    queries: Axes = ("dp", "cp", TP)
    keys: Axes = ("dp", None, TP)  # every rank of cp sees all keys
    head_norms = ("q_norm", "k_norm") if model.qk_norm else ()
    return (
        *(_norm(f"{LAYER}{path}", residual) for path in NORMS),
        *(_gathered(f"{path}.tokens.tokens", residual) for path in COLUMNS if parallel.sequence_parallel),
        *(_columns(f"{path}.matmul") for path in COLUMNS),
        _rule(f"{ATTENTION}.split", (*groups, None, None)),
        *(_rule(f"{ATTENTION}.{name}", (*groups, copies, None)) for name in ("k_repeat", "v_repeat")),
        *(_rule(f"{LAYER}.attention.{name}.rms_norm.rms_norm", heads, (None,)) for name in head_norms),
        *(_rule(f"{ATTENTION}.{name}", heads, table, table) for name in ("q_rope", "k_rope")),
        _rule(f"{ATTENTION}.flash_attention", queries, keys, keys, (None, None)),
        *(_rows(f"{path}.matmul", residual) for path in ROWS),
        _rule(f"{LAYER}.mlp.swiglu.swiglu", (TOKENS, TP, None, None)),
        *(_rule(f"{LAYER}.{name}", (residual, None), (residual, None)) for name in ("attention_add", "mlp_add")),
    )


def _head_and_loss(parallel: ParallelSection, residual: Axis) -> tuple[LayoutRule, ...]:
    row: Cuts = (TOKENS, None)  # one number a token
    kept = () if parallel.recompute != "none" else ((TOKENS, TP),)
    keeps_tokens = parallel.gathered_tokens == "kept"
    inputs: tuple[Cuts, ...] = ((TOKENS if keeps_tokens else residual, None), (TP, None), (TOKENS,))
    return (
        _norm("decoder.norm.rms_norm", residual),
        *((_gathered(f"{HEAD}.tokens.tokens", residual),) if keeps_tokens else ()),
        _columns("decoder.head.linear.matmul"),
        LayoutRule(path=f"{HEAD}.rows", inputs=inputs, outputs=(row, row, *kept)),
        *(_rule(f"{LOSS}.{name}", row) for name in ("total", "total_square")),
        _rule(f"{LOSS}.counts", row, ()),
        *(_rule(f"{LOSS}.{name}", row, row) for name in ("row_loss", "keep", "square", "keep_square")),
    )


def _parameters(model: ModelSection) -> tuple[ParameterRule, ...]:
    """Names as in a checkpoint."""
    norms = ["norm", "layers.*.attention_norm", "layers.*.mlp_norm"]
    if model.qk_norm:
        norms += ["layers.*.attention.q_norm", "layers.*.attention.k_norm"]
    columns = ["embedding", "layers.*.attention.qkv", "layers.*.mlp.gate_up"]
    if not model.tied_embeddings:
        columns.append("head")
    return (
        *(ParameterRule(path=f"{name}.weight", axes=(None,)) for name in norms),
        *(ParameterRule(path=f"{name}.weight", axes=(TP, None)) for name in columns),
        *(ParameterRule(path=f"layers.*.{name}.weight", axes=(None, TP)) for name in ("attention.out", "mlp.down")),
    )


def _stages(model: ModelSection, parallel: ParallelSection) -> tuple[StageRule, ...]:
    mesh = mesh_of(parallel)
    if mesh.pp == 1:
        return ()
    last = parallel.interleave - 1
    layers = enumerate(layer_places(model, parallel))
    return (
        StageRule(path="decoder.embedding", stage=0),
        *(StageRule(path=f"decoder.layers.{index}", stage=stage, chunk=chunk) for index, (stage, chunk) in layers),
        *(StageRule(path=path, stage=mesh.pp - 1, chunk=last) for path in ("decoder.norm", "decoder.head", "loss")),
    )


def layer_places(model: ModelSection, parallel: ParallelSection) -> list[tuple[int, int]]:
    """(stage, chunk) of every layer: the chunks of all stages follow one another, each as the stages do."""
    pp, chunks = mesh_of(parallel).pp, parallel.interleave
    if chunks == 1:
        counts: tuple[int, ...] = balanced_stages(model.num_layers, pp, parallel.stages, _head_in_layers(model))
    else:
        counts = (model.num_layers // (pp * chunks),) * (pp * chunks)
    return [(part % pp, part // pp) for part, count in enumerate(counts) for _ in range(count)]


def _head_in_layers(model: ModelSection) -> float:
    """What the output layer computes, over what a layer does: by their matrix products."""
    kv_heads, size = model.num_kv_heads or model.num_heads, model.head_size or 0
    return (model.vocab_size or 0) / (2 * (model.num_heads + kv_heads) * size + 3 * model.ffn_size)


def _recompute(model: ModelSection, parallel: ParallelSection) -> tuple[RecomputeRule, ...]:
    """full: whole blocks; selective: norms and SwiGLU, no matrix products. The first layers of a stage, where limited.

    Tokens are gathered again, unless they are kept; then what norms give is not read again.
    """
    again = parallel.sequence_parallel and parallel.gathered_tokens == "again"
    tokens = tuple(RecomputeRule(path=f"{path}.tokens.gather") for path in COLUMNS if again)
    return (*tokens, *_recomputed_layers(model, parallel))


def _recomputed_layers(model: ModelSection, parallel: ParallelSection) -> tuple[RecomputeRule, ...]:
    if parallel.recompute == "none":
        return ()
    places = layer_places(model, parallel)
    stages = [stage for stage, _ in places]
    limit = model.num_layers if parallel.recompute_layers is None else parallel.recompute_layers
    chosen = [index for index, stage in enumerate(stages) if stages[:index].count(stage) < limit]
    norms = () if parallel.gathered_tokens == "kept" else tuple(f"{path}.rms_norm" for path in NORMS)
    within = ("",) if parallel.recompute == "full" else norms + SWIGLU
    return tuple(RecomputeRule(path=f"decoder.layers.{index}{path}") for index in chosen for path in within)
