"""Rules across sections, one small function each, and the degrees of the device mesh.

A rule yields a Fault for each thing that cannot be; the text says what would work. Those about the mesh are in
layout_rules.py; `resolve_degrees` applies them again when no degree is `auto` any more.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Callable, Iterable, Iterator, Optional

from mindmodel.errors import LayoutError
from mindmodel.models.family import family_names, find_family
from mindmodel.recipe.layout_rules import LAYOUT_RULES, divisors, known, multiples_near
from mindmodel.recipe.schema import Recipe
from mindmodel.recipe.values import Fault, join_or


def data_has_one_origin(recipe: Recipe) -> Iterator[Fault]:
    data = recipe.data
    if data.source is not None and data.path is not None:
        yield Fault("data.path", "'data.source' is given too. Use one: source for raw text, path for prepared shards.")
    if data.source is None and data.path is None:
        yield Fault("data.source", "no data. Use data.source=stdlib, or a text file; or data.path for prepared shards.")
    if data.source is not None and not all(data.source or ("",)):
        yield Fault("data.source", "is empty. Use stdlib, a file, a folder, a glob, or a list of them.")


def family_is_known(recipe: Recipe) -> Iterator[Fault]:
    if recipe.model.family not in family_names():
        yield Fault("model.family", f"'{recipe.model.family}' is unknown. Use {join_or(family_names())}.")


def family_has_the_features(recipe: Recipe) -> Iterator[Fault]:
    model = recipe.model
    if model.family not in family_names():
        return
    family = find_family(model.family)
    if model.qk_norm != family.qk_norm:
        value = str(family.qk_norm).lower()
        yield Fault("model.qk_norm", f"'family={model.family}' has qk_norm {value}. Use {value}, or leave the key out.")
    scaling = model.rope_scaling
    if scaling is not None and scaling.type not in family.rope_scaling_types:
        types = join_or(family.rope_scaling_types) or "none: leave rope_scaling out"
        yield Fault("model.rope_scaling.type", f"'{scaling.type}' is not in 'family={model.family}'. Use {types}.")


def rope_bands_are_ordered(recipe: Recipe) -> Iterator[Fault]:
    scaling = recipe.model.rope_scaling
    if scaling is not None and scaling.type == "llama3" and scaling.high_freq_factor <= scaling.low_freq_factor:
        low = scaling.low_freq_factor
        yield Fault("model.rope_scaling.high_freq_factor", f"must be above 'low_freq_factor={low:g}'. Use {4 * low:g}.")


def heads_fit(recipe: Recipe) -> Iterator[Fault]:
    model = recipe.model
    if model.num_kv_heads is not None and model.num_heads % model.num_kv_heads:
        text = f"'num_kv_heads={model.num_kv_heads}' does not divide 'num_heads={model.num_heads}'."
        yield Fault("model.num_kv_heads", f"{text} Use {join_or(divisors(model.num_heads))}.")
    if model.head_size is None:
        text = f"'num_heads={model.num_heads}' does not divide 'hidden_size={model.hidden_size}'. "
        yield Fault("model.head_size", f"{text}Use another of the two, or give model.head_size.")
    elif model.head_size % 2:
        near = join_or((model.head_size - 1, model.head_size + 1))
        yield Fault("model.head_size", f"'{model.head_size}' is odd, and rotary embedding turns pairs. Use {near}.")


def vocabulary_holds_the_tokenizer(recipe: Recipe) -> Iterator[Fault]:
    size, trained = recipe.model.vocab_size, recipe.data.tokenizer_vocab_size
    if size is not None and recipe.data.tokenizer == "train" and size < trained:
        text = f"'vocab_size={size}' is smaller than 'data.tokenizer_vocab_size={trained}'. Use {trained} or more."
        yield Fault("model.vocab_size", text)


def batch_is_whole_sequences(recipe: Recipe) -> Iterator[Fault]:
    tokens, seq_len = recipe.train.tokens_per_step, recipe.data.seq_len
    if tokens % seq_len:
        text = f"'tokens_per_step={tokens}' is not a multiple of 'seq_len={seq_len}'."
        yield Fault("train.tokens_per_step", f"{text} Use {multiples_near(tokens, seq_len)}.")


def one_degree_is_auto(recipe: Recipe) -> Iterator[Fault]:
    autos = [name for name, degree in recipe.parallel.degrees.items() if degree == "auto"]
    if len(autos) > 1:
        given = " and ".join(f"'{name}'" for name in autos)
        yield Fault(f"parallel.{autos[-1]}", f"{given} are auto (dp is by default). Use a number for all but one.")


def recompute_layers_has_recompute(recipe: Recipe) -> Iterator[Fault]:
    if recipe.parallel.recompute_layers is not None and recipe.parallel.recompute == "none":
        text = "limits recompute, and 'recompute=none'. Use recompute selective or full, or leave it out."
        yield Fault("parallel.recompute_layers", text)


def warmup_ends_before_the_run(recipe: Recipe) -> Iterator[Fault]:
    warmup, steps = recipe.optim.warmup_steps, recipe.train.steps
    if warmup and warmup >= steps:
        works = f"Use optim.warmup_steps={steps // 10}, or another number below {steps}"
        yield Fault("optim.warmup_steps", f"'warmup_steps={warmup}' is not below 'train.steps={steps}'. {works}.")


def stop_is_within_the_run(recipe: Recipe) -> Iterator[Fault]:
    stop, steps = recipe.train.stop_at, recipe.train.steps
    if stop is not None and stop > steps:
        yield Fault("train.stop_at", f"'stop_at={stop}' is beyond 'steps={steps}'. Use {steps} or less.")


def kept_checkpoints_are_written(recipe: Recipe) -> Iterator[Fault]:
    every, forever = recipe.checkpoint.every, recipe.checkpoint.keep_every
    if forever and (not every or forever % every):
        works = f"a multiple of {every}" if every else "0, or give checkpoint.every"
        text = f"'keep_every={forever}' meets no checkpoint of 'every={every}'"
        yield Fault("checkpoint.keep_every", f"{text}. Use {works}.")


def best_checkpoint_is_evaluated(recipe: Recipe) -> Iterator[Fault]:
    needed = {"checkpoint.every": recipe.checkpoint.every, "train.eval_every": recipe.train.eval_every}
    missing = [f"{name}=0" for name, value in needed.items() if not value]
    if recipe.checkpoint.keep_best and missing:
        text = f"'keep_best' compares held-out losses of steps that are saved, and '{missing[0]}'"
        yield Fault("checkpoint.keep_best", f"{text}. Give checkpoint.every, and train.eval_every a multiple of it.")


Rule = Callable[[Recipe], Iterable[Fault]]

RULES: tuple[Rule, ...] = (
    family_is_known,
    family_has_the_features,
    heads_fit,
    rope_bands_are_ordered,
    vocabulary_holds_the_tokenizer,
    data_has_one_origin,
    batch_is_whole_sequences,
    *LAYOUT_RULES,
    one_degree_is_auto,
    recompute_layers_has_recompute,
    warmup_ends_before_the_run,
    stop_is_within_the_run,
    kept_checkpoints_are_written,
    best_checkpoint_is_evaluated,
)


def faults_of(recipe: Recipe, rules: Iterable[Rule] = RULES) -> list[Fault]:
    """All broken rules of a recipe whose derived defaults are filled in."""
    return [fault for rule in rules for fault in rule(recipe)]


def with_defaults(recipe: Recipe) -> Recipe:
    """The recipe with `num_kv_heads`, `head_size` and `qk_norm` filled in, where they can be derived."""
    model = recipe.model
    filled: dict[str, Any] = {}
    if model.num_kv_heads is None:
        filled["model.num_kv_heads"] = model.num_heads
    if model.head_size is None and model.hidden_size % model.num_heads == 0:
        filled["model.head_size"] = model.hidden_size // model.num_heads
    if model.qk_norm is None and model.family in family_names():
        filled["model.qk_norm"] = find_family(model.family).qk_norm
    return recipe.with_keys(filled)


def with_degrees(recipe: Recipe, **degrees: int) -> Recipe:
    """The recipe with other degrees."""
    return recipe.with_keys({f"parallel.{name}": degree for name, degree in degrees.items()})


def _layouts_that_work(recipe: Recipe, num_devices: int) -> list[str]:
    """Up to four layouts of all devices that break no rule, those that change fewest degrees first."""
    found, wanted = [], recipe.parallel.degrees
    for pp, cp, tp in itertools.product(divisors(num_devices), repeat=3):
        if num_devices % (pp * cp * tp) == 0:
            degrees = {"pp": pp, "dp": num_devices // (pp * cp * tp), "cp": cp, "tp": tp}
            if not faults_of(with_degrees(recipe, **degrees), LAYOUT_RULES):
                distance = sum(wanted[name] not in ("auto", now) for name, now in degrees.items())
                found.append((distance, " ".join(f"{name}={now}" for name, now in degrees.items())))
    return [layout for _, layout in sorted(found)[:4]]


def _filled(recipe: Recipe, num_devices: int) -> Optional[Recipe]:
    """The recipe with the auto degree filled in; None when the product cannot be the number of devices."""
    degrees = recipe.parallel.degrees
    product = math.prod(map(known, degrees.values()))
    free = {name: num_devices // product for name, degree in degrees.items() if degree == "auto"}
    if num_devices % product or (not free and product != num_devices):
        return None
    return with_degrees(recipe, **free)


def resolve_degrees(recipe: Recipe, num_devices: int) -> Recipe:
    """Fill in the `auto` degree so that dp * tp * pp * cp is the number of devices.

    Args:
        recipe: a checked recipe.
        num_devices: devices of the whole job, at least 1.

    Raises:
        LayoutError: if the degrees cannot make that number, or break a rule when they do; names layouts that work.
    """
    filled = _filled(recipe, num_devices)
    if filled is None:
        given = " * ".join(f"{name}={degree}" for name, degree in recipe.parallel.degrees.items())
        lines = [f"recipe '{recipe.name}', parallel: {given} cannot be {num_devices} devices."]
    else:
        lines = [f"recipe '{recipe.name}', {fault.key}: {fault.text}" for fault in faults_of(filled, LAYOUT_RULES)]
        if not lines:
            return filled
    layouts = _layouts_that_work(recipe, num_devices)
    works = f"Use {join_or(layouts)}." if layouts else "No layout of that many devices fits this model and batch."
    raise LayoutError("\n".join([*lines, works]))
