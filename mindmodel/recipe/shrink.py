"""A cluster's recipe on one device, and in small sizes, for debugging. Same structure, every change listed."""

from __future__ import annotations

import dataclasses
import math
from typing import AbstractSet, Any, Callable, Iterator, Optional

from mindmodel.errors import LayoutError
from mindmodel.recipe.dump import describe, differences
from mindmodel.recipe.layout_rules import divisors, known
from mindmodel.recipe.schema import AXES, Recipe

MAX_STEPS = 20
MAX_SEQ_LEN = 64
MAX_VOCAB_SIZE = 512
MAX_SEQUENCES = 4
HEAD_SIZE = 16
LAYERS_PER_STAGE = 2
MIN_INTERVAL = 5

Keys = dict[str, Any]


def _apply(recipe: Recipe, keys: Keys, keep: AbstractSet[str]) -> Recipe:
    return recipe.with_keys({key: value for key, value in keys.items() if key not in keep})


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
    keys = {f"parallel.{degree}": 1 for degree in AXES}
    whole = {
        "parallel.stages": None,
        "parallel.interleave": 1,
        "parallel.sequence_parallel": False,
        "parallel.gathered_tokens": "again",
        "parallel.shard_optimizer": "none",
        "parallel.reduce_dtype": "float32",
    }
    alone = _apply(recipe.with_keys(keys | whole), _for_any_device(recipe), keep)
    return alone, describe(differences(recipe, alone))


def _multiple(size: float, step: int) -> int:
    """The multiple of `step` nearest to `size`, at least one."""
    return max(1, round(size / step)) * step


def _kv_heads(old: Recipe, new: Recipe) -> Keys:
    """Few KV heads that tp still divides, or all where tp has more ranks than there are."""
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
    """Two layers a stage, or one in each of its chunks; uneven stages stay uneven, in the same order of size."""
    layers, stages, pp = old.model.num_layers, old.parallel.stages, known(old.parallel.pp)
    few = max(LAYERS_PER_STAGE, old.parallel.interleave) * pp + layers % pp
    keys: Keys = {"model.num_layers": min(layers, few)}
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
    tp = known(old.parallel.tp)
    return {"model.vocab_size": math.ceil(new.data.tokenizer_vocab_size / tp) * tp}


def _seq_len(old: Recipe, new: Recipe) -> Keys:
    """Pieces of equal size for cp, and of them for tp where it splits tokens."""
    cp, tp = known(old.parallel.cp), known(old.parallel.tp) if old.parallel.sequence_parallel else 1
    piece = _multiple(max(2, MAX_SEQ_LEN // cp), tp)
    return {"data.seq_len": min(old.data.seq_len, cp * piece)}


def _few_micro_batches(recipe: Recipe, pp: int) -> int:
    """At most twice the stages: a pipeline still fills, runs and drains."""
    return min(recipe.parallel.micro_batches, 2 * pp)


def _batch(old: Recipe, new: Recipe) -> Keys:
    """Few micro-batches, of at most four sequences; of one where cp cuts it."""
    dp, micro_batches = known(old.parallel.dp), _few_micro_batches(old, known(old.parallel.pp))
    most = MAX_SEQUENCES if known(old.parallel.cp) == 1 else 1
    held = min(most, max(1, old.sequences_per_step // (dp * old.parallel.micro_batches)))
    return {
        "parallel.micro_batches": micro_batches,
        "train.tokens_per_step": dp * micro_batches * held * new.data.seq_len,
    }


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
        "log.norms_every": old.log.norms_every and scaled(old.log.norms_every),
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

    Degrees, stages, grouping of heads, proportions of widths, tying, QK-norm, rotary scaling, recompute, optimizer and
    schedule stay. Heads, widths, layers, vocabulary, data, sequence, batch, micro-batches and steps shrink.
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


def _fewer(degrees: dict[str, int]) -> Optional[str]:
    """The degree to reduce next: the largest that stays above 1, dp before its equals; None if there is none."""
    order = sorted(degrees, key=lambda name: (-degrees[name], name != "dp"))
    return next((name for name in order if len(divisors(degrees[name])) > 2), None)


def _fewer_stages(recipe: Recipe, pp: int) -> Keys:
    """The first stages, of different sizes where they were; without a list, layers that still do not divide."""
    layers, stages = recipe.model.num_layers, recipe.parallel.stages
    if stages is None:
        evened = layers % known(recipe.parallel.pp) and layers % pp == 0
        return {"model.num_layers": layers - 1 if evened and layers > pp else layers}
    few = list(stages[:pp])
    few[-1] = next((size for size in stages if len(set(few)) == 1 and size != few[0]), few[-1])
    return {"model.num_layers": sum(few), "parallel.stages": tuple(few)}


def _fewer_heads(recipe: Recipe, tp: int) -> Keys:
    """Where ranks of tp have copies of KV heads, so many heads that they still do."""
    model, old_tp = recipe.model, known(recipe.parallel.tp)
    kv_heads = model.num_kv_heads or model.num_heads
    if old_tp <= kv_heads:
        return {}
    few = max(1, kv_heads * tp // old_tp)
    return {"model.num_kv_heads": few, "model.num_heads": model.num_heads * few // kv_heads}


def _with_fewer(recipe: Recipe, degrees: dict[str, int]) -> Iterator[tuple[str, Any]]:
    """Keys of a recipe with smaller degrees."""
    pp = degrees["pp"]
    micro_batches = _few_micro_batches(recipe, pp)
    share = known(recipe.parallel.dp) * recipe.parallel.micro_batches
    sequences = recipe.sequences_per_step // share * degrees["dp"] * micro_batches
    yield from ((f"parallel.{name}", degree) for name, degree in degrees.items())
    yield "parallel.micro_batches", micro_batches
    yield "train.tokens_per_step", sequences * recipe.data.seq_len
    if pp != recipe.parallel.pp:
        yield from _fewer_stages(recipe, pp).items()
    yield from _fewer_heads(recipe, degrees["tp"]).items()


def fewer_devices(recipe: Recipe, most: int) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe's layout on fewer devices: every degree above 1 stays above 1 and divides what it was.

    The largest degree is reduced first, dp before its equals. Sequences of a rank and micro-batch, and unevenness of
    stages, stay; micro-batches become at most twice the stages.

    Args:
        recipe: a checked recipe whose degrees are all numbers.
        most: devices, at least 1.

    Returns:
        The recipe, unchanged where it needs no more, and one line `key: old -> new` for each change.

    Raises:
        LayoutError: if so few devices cannot keep every axis.
    """
    degrees = {name: known(degree) for name, degree in recipe.parallel.degrees.items()}
    if math.prod(degrees.values()) <= most:
        return recipe, ()
    while math.prod(degrees.values()) > most:
        name = _fewer(degrees)
        if name is None:
            given = " * ".join(f"{name}={degree}" for name, degree in degrees.items())
            needed = math.prod(degrees.values())
            raise LayoutError(
                f"recipe '{recipe.name}', parallel: {given} = {needed} devices are the fewest that keep every "
                f"axis, and {most} are allowed. Use an axis less, or degrees that are powers of 2."
            )
        degrees[name] = divisors(degrees[name])[-2]
    small = recipe.with_keys(dict(_with_fewer(recipe, degrees)))
    return small, describe(differences(recipe, small))
