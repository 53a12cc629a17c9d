"""A cluster's recipe on one device, and in small sizes, for debugging. Same structure, every change listed."""

from __future__ import annotations

import dataclasses
import math
from typing import AbstractSet, Any, Callable

from mindmodel.recipe.dump import describe, differences
from mindmodel.recipe.schema import Recipe

MAX_STEPS = 20
MAX_SEQ_LEN = 64
MAX_VOCAB_SIZE = 512
MAX_SEQUENCES = 4
HEAD_SIZE = 16
LAYERS_PER_STAGE = 2
MIN_INTERVAL = 5

Keys = dict[str, Any]


def _replace(recipe: Recipe, keys: Keys) -> Recipe:
    """The recipe with dotted keys set."""
    for dotted, value in keys.items():
        section, _, key = dotted.partition(".")
        changed = dataclasses.replace(getattr(recipe, section), **{key: value})
        recipe = dataclasses.replace(recipe, **{section: changed})
    return recipe


def _apply(recipe: Recipe, keys: Keys, keep: AbstractSet[str]) -> Recipe:
    return _replace(recipe, {key: value for key, value in keys.items() if key not in keep})


def _for_any_device(recipe: Recipe) -> Keys:
    """What only a cluster's chips can do."""
    return {"runtime.device": "auto"} if recipe.runtime.device == "ascend" else {}


def single(recipe: Recipe, keep: AbstractSet[str] = frozenset()) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe on one device: all degrees 1, nothing split.

    Args:
        recipe: a checked recipe.
        keep: dotted keys that stay, degrees excepted.

    Returns:
        The recipe, and one line `key: old -> new` for each change.
    """
    keys = {f"parallel.{degree}": 1 for degree in ("dp", "tp", "pp", "cp")}
    whole = {"parallel.stages": None, "parallel.sequence_parallel": False, "parallel.shard_optimizer": "none"}
    alone = _apply(_replace(recipe, keys | whole), _for_any_device(recipe), keep)
    return alone, describe(differences(recipe, alone))


def _multiple(size: float, step: int) -> int:
    """The multiple of `step` nearest to `size`, at least one."""
    return max(1, round(size / step)) * step


def _degree(recipe: Recipe, name: str) -> int:
    """A degree, or 1 while it is auto."""
    value = getattr(recipe.parallel, name)
    return 1 if value == "auto" else value


def _kv_heads(old: Recipe, new: Recipe) -> Keys:
    """Few KV heads that tp still divides."""
    kv_heads, tp = old.model.num_kv_heads or old.model.num_heads, old.parallel.tp
    few = kv_heads if tp == "auto" else min(kv_heads, max(2, tp))
    return {"model.num_kv_heads": few, "model.head_size": min(old.model.head_size or HEAD_SIZE, HEAD_SIZE)}


def _heads(old: Recipe, new: Recipe) -> Keys:
    """As many query heads on each KV head as before."""
    kv_heads, few = old.model.num_kv_heads or old.model.num_heads, new.model.num_kv_heads or 1
    return {"model.num_heads": few * (old.model.num_heads // kv_heads)}


def _widths(old: Recipe, new: Recipe) -> Keys:
    """Hidden size in the old proportion to the heads, feed-forward size in the old proportion to it."""
    width, old_width = (recipe.model.num_heads * (recipe.model.head_size or HEAD_SIZE) for recipe in (new, old))
    hidden = min(old.model.hidden_size, _multiple(width * old.model.hidden_size / old_width, 16))
    ffn = _multiple(hidden * old.model.ffn_size / old.model.hidden_size, 16)
    return {"model.hidden_size": hidden, "model.ffn_size": min(old.model.ffn_size, ffn)}


def _layers(old: Recipe, new: Recipe) -> Keys:
    """Two layers a stage; uneven stages stay uneven, in the same order of size."""
    layers, stages, pp = old.model.num_layers, old.parallel.stages, _degree(old, "pp")
    keys: Keys = {"model.num_layers": min(layers, LAYERS_PER_STAGE * pp + layers % pp)}
    if stages is not None:
        rank = {size: place for place, size in enumerate(sorted(set(stages)))}
        small = tuple(min(size, LAYERS_PER_STAGE + rank[size]) for size in stages)
        keys = {"model.num_layers": sum(small), "parallel.stages": small}
    if old.parallel.recompute_layers is not None:
        keys["parallel.recompute_layers"] = min(old.parallel.recompute_layers, 1)
    return keys


def _text(old: Recipe, new: Recipe) -> Keys:
    """Python's own library and a tokenizer trained on it: always there."""
    return {
        "data.source": ("stdlib",),
        "data.path": None,
        "data.tokenizer": "train",
        "data.tokenizer_vocab_size": min(old.data.tokenizer_vocab_size, MAX_VOCAB_SIZE),
    }


def _vocabulary(old: Recipe, new: Recipe) -> Keys:
    """The trained tokenizer's size, padded for tp; left to the tokenizer where it was."""
    if old.model.vocab_size is None or new.data.tokenizer != "train":
        return {}
    tp = _degree(old, "tp")
    return {"model.vocab_size": math.ceil(new.data.tokenizer_vocab_size / tp) * tp}


def _seq_len(old: Recipe, new: Recipe) -> Keys:
    cp = _degree(old, "cp")
    return {"data.seq_len": min(old.data.seq_len, cp * max(2, MAX_SEQ_LEN // cp))}


def _batch(old: Recipe, new: Recipe) -> Keys:
    """As many micro-batches as before, of at most four sequences."""
    share = _degree(old, "dp") * old.parallel.micro_batches
    sequences = share * min(MAX_SEQUENCES, max(1, old.sequences_per_step // share))
    return {"train.tokens_per_step": sequences * new.data.seq_len}


def _rope(old: Recipe, new: Recipe) -> Keys:
    """The first training length in the old proportion to the sequence, so that llama3 scaling still has its bands."""
    scaling = old.model.rope_scaling
    if scaling is None:
        return {}
    first = scaling.original_max_position_embeddings * new.data.seq_len // old.data.seq_len
    small = dataclasses.replace(scaling, original_max_position_embeddings=max(1, first))
    return {"model.rope_scaling": small}


def _length(old: Recipe, new: Recipe) -> Keys:
    """A short run of fresh weights in a folder of its own."""
    return {"train.steps": min(old.train.steps, MAX_STEPS), "train.init_from": None, "runtime.output": None}


def _intervals(old: Recipe, new: Recipe) -> Keys:
    """Every number of steps in the old proportion to the run."""

    def scaled(steps: int, least: int = 1) -> int:
        return min(steps, max(least, round(steps * new.train.steps / old.train.steps)))

    return {
        "train.stop_at": old.train.stop_at and scaled(old.train.stop_at),
        "train.eval_every": scaled(old.train.eval_every, MIN_INTERVAL),
        "optim.warmup_steps": min(scaled(old.optim.warmup_steps), new.train.steps - 1),
        "checkpoint.every": scaled(old.checkpoint.every, MIN_INTERVAL),
        "log.every": scaled(old.log.every),
    }


def _kept_for_ever(old: Recipe, new: Recipe) -> Keys:
    """The same share of all checkpoints."""
    every = old.checkpoint.every
    return {"checkpoint.keep_every": new.checkpoint.every * (old.checkpoint.keep_every // every) if every else 0}


PARTS: tuple[Callable[[Recipe, Recipe], Keys], ...] = (
    _kv_heads,
    _heads,
    _widths,
    _layers,
    _text,
    _vocabulary,
    _seq_len,
    _batch,
    _rope,
    _length,
    _intervals,
    _kept_for_ever,
)
"""What shrinks, in this order: each part sees the recipe as it was, and as the parts before it have made it."""


def shrink(recipe: Recipe, keep: AbstractSet[str] = frozenset()) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe's structure in sizes that compile and train in seconds on a laptop.

    Degrees, stages, micro-batches, grouping of heads, proportions of widths, tying, QK-norm, rotary scaling,
    recompute, optimizer and schedule stay. Heads, widths, layers, vocabulary, data, sequence, batch and steps shrink.
    The run gets a name and a folder of its own and fresh weights. An `auto` degree counts as 1: fill it in first
    (rules.resolve_degrees) to keep it.

    Args:
        recipe: a checked recipe.
        keep: dotted keys that stay as they are; what depends on them follows. Data or tokenizer keep each other.

    Returns:
        The recipe, and one line `key: old -> new` for each change.
    """
    if keep & {"data.source", "data.path", "data.tokenizer"}:
        keep = keep | {"data.source", "data.path", "data.tokenizer", "data.tokenizer_vocab_size", "model.vocab_size"}
    small = _apply(recipe, _for_any_device(recipe), keep)
    for part in PARTS:
        small = _apply(small, part(recipe, small), keep)
    small = dataclasses.replace(small, name=f"{recipe.name}_small")
    return small, (f"name: {recipe.name} -> {small.name}", *describe(differences(recipe, small)))
