"""What tells one family of decoders from another: a record for each, in a file of its own beside this one.

A file of this folder that sets `FAMILY` is a family; nothing else has to know of it.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Optional

from mindmodel.errors import ConversionError, RecipeError
from mindmodel.models.weight_rules import Rule, Shape
from mindmodel.recipe.schema import ModelSection
from mindmodel.recipe.values import Refused, build, nearest

CONFIG_ENTRIES = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "ffn_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "norm_eps": "rms_norm_eps",
    "tied_embeddings": "tie_word_embeddings",
    "init_std": "initializer_range",
}
"""Key of the model section -> entry of Hugging Face's config.json. The rotary embedding is apart: `_rope_of`."""

CONFIG_DEFAULTS = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 10000.0}
"""What transformers takes for an entry that a config.json leaves out."""

CHECKED_ENTRIES = {"partial_rotary_factor": 1.0, "quantization_config": {}}
"""Entries that must have this value, if they are there, in every family."""

LLAMA3_FACTORS = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of decoders.

    Attributes:
        name: `model.family` in a recipe.
        architecture, model_type: what its config.json says.
        qk_norm: whether query and key heads are normalised.
        rope_scaling_types: that its Hugging Face class and our decoder share.
        rules: between our parameters and Hugging Face's tensors.
        mindformers_rules: between our parameters and those of MindFormers' model, with its published settings; empty
            where it has none.
        fixed_entries: config.json entries with the only value that the decoder can do; written, and checked when read.
        checked_entries: the same for entries that are not written; of a list, each item is checked.
        default_entries: values of the family's own for entries that a config.json leaves out.
    """

    name: str
    architecture: str
    model_type: str
    qk_norm: bool
    rope_scaling_types: tuple[str, ...]
    rules: tuple[Rule, ...]
    fixed_entries: Mapping[str, Any]
    checked_entries: Mapping[str, Any] = field(default_factory=dict)
    default_entries: Mapping[str, Any] = field(default_factory=dict)
    mindformers_rules: tuple[Rule, ...] = ()

    def read_config(self, config: Mapping[str, Any], where: Path) -> ModelSection:
        """The model section of a config.json, derived sizes filled in.

        Raises:
            ConversionError: with a line for each entry that is missing, ill-typed, or beyond what the decoder can do.
        """
        self._check_entries(config, where)
        defaults = {**CONFIG_DEFAULTS, **self.default_entries}
        values = {ours: config.get(theirs, defaults.get(theirs)) for ours, theirs in CONFIG_ENTRIES.items()}
        values = {ours: value for ours, value in values.items() if value is not None}
        theta, scaling = self._rope_of(config, where)
        try:
            model = build(
                ModelSection,
                "model",
                {"family": self.name, "qk_norm": self.qk_norm, **values, "rope_theta": theta, "rope_scaling": scaling},
            )
        except Refused as refused:
            raise ConversionError(
                "\n".join(f"{where}, {_entry_of(fault.key)}: {fault.text}" for fault in refused.faults)
            ) from refused
        if model.vocab_size is None:
            raise ConversionError(f"{where}, vocab_size: is missing. Use the rows of the embedding.")
        return dataclasses.replace(
            model,
            num_kv_heads=model.num_kv_heads or model.num_heads,
            head_size=model.head_size or model.hidden_size // model.num_heads,
        )

    def write_config(self, model: ModelSection) -> dict[str, Any]:
        """The entries of config.json that a model section determines.

        Source: `LlamaConfig` and `Qwen3Config` of transformers.
        """
        entries = {theirs: getattr(model, ours) for ours, theirs in CONFIG_ENTRIES.items()}
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            **entries,
            "rope_theta": model.rope_theta,
            "rope_scaling": _scaling_entry(model),
            **self.fixed_entries,
        }

    def _check_entries(self, config: Mapping[str, Any], where: Path) -> None:
        """Refuse what the decoder cannot do."""
        only = {**CHECKED_ENTRIES, **self.fixed_entries, **self.checked_entries, "architectures": self.architecture}
        faults = []
        for entry, value in only.items():
            given = config.get(entry)
            items = given if isinstance(given, list) else [given]
            if given is not None and any(item != value for item in items):
                faults.append(f"{where}, {entry}: {given!r} is not supported for {self.model_type}. Only {value!r} is.")
        if faults:
            raise ConversionError("\n".join(faults))

    def _rope_of(self, config: Mapping[str, Any], where: Path) -> tuple[Any, Optional[dict[str, Any]]]:
        """Base and scaling of the rotary embedding; `rope_parameters` is how transformers 5 writes both."""
        entry = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
        scaling = config.get(entry) or {}
        if not isinstance(scaling, dict):
            raise ConversionError(f"{where}, {entry}: {scaling!r} is not a mapping.")
        theta = scaling.get("rope_theta", config.get("rope_theta", CONFIG_DEFAULTS["rope_theta"]))
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        rest = {name: value for name, value in scaling.items() if name not in ("rope_type", "type", "rope_theta")}
        if kind == "default" and not rest:
            return theta, None
        if kind not in self.rope_scaling_types:
            known = ", ".join(self.rope_scaling_types)
            raise ConversionError(f"{where}, {entry}: {scaling!r} is not supported. Known types are default, {known}.")
        return theta, {"type": kind, **rest}


def _scaling_entry(model: ModelSection) -> Optional[dict[str, Any]]:
    scaling = model.rope_scaling
    if scaling is None:
        return None
    factors = LLAMA3_FACTORS if scaling.type == "llama3" else ()
    return {"rope_type": scaling.type, "factor": scaling.factor, **{name: getattr(scaling, name) for name in factors}}


def _entry_of(key: str) -> str:
    """The config.json entry behind a key of the model section, for messages."""
    name = key.partition(".")[2]
    return CONFIG_ENTRIES.get(name, name)


def architecture_differences(one: ModelSection, other: ModelSection) -> list[tuple[str, Any, Any]]:
    """Keys of the model section that two models compute differently with: (key, the one's value, the other's)."""
    names = [field.name for field in dataclasses.fields(ModelSection) if field.name != "init_std"]
    pairs = [(name, getattr(one, name), getattr(other, name)) for name in names]
    return [pair for pair in pairs if pair[1] != pair[2]]


def parameter_shapes(model: ModelSection) -> dict[str, Shape]:
    """Shapes of the decoder's parameters by name; a Linear weight is [out, in].

    Args:
        model: with `vocab_size`, `num_kv_heads`, `head_size` and `qk_norm` filled in.
    """
    assert model.vocab_size and model.num_kv_heads and model.head_size
    hidden, heads, kv_heads, head = model.hidden_size, model.num_heads, model.num_kv_heads, model.head_size
    layer: dict[str, Shape] = {
        "attention_norm.weight": (hidden,),
        "attention.qkv.weight": ((heads + 2 * kv_heads) * head, hidden),
        "attention.out.weight": (hidden, heads * head),
        "mlp_norm.weight": (hidden,),
        "mlp.gate_up.weight": (2 * model.ffn_size, hidden),
        "mlp.down.weight": (hidden, model.ffn_size),
    }
    if model.qk_norm:
        layer.update({"attention.q_norm.weight": (head,), "attention.k_norm.weight": (head,)})
    shapes: dict[str, Shape] = {"embedding.weight": (model.vocab_size, hidden)}
    for index in range(model.num_layers):
        shapes.update({f"layers.{index}.{name}": shape for name, shape in layer.items()})
    shapes["norm.weight"] = (hidden,)
    if not model.tied_embeddings:
        shapes["head.weight"] = (model.vocab_size, hidden)
    return shapes


def family_names() -> tuple[str, ...]:
    """Names of all families. Files are read, not imported: the decoder's would bring in mindspore."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return tuple(file.stem for file in files if re.search(r"^FAMILY\b", file.read_text(encoding="utf-8"), re.MULTILINE))


def find_family(name: str) -> Family:
    """The family of that name.

    Raises:
        RecipeError: if there is none.
    """
    names = family_names()
    if name not in names:
        raise RecipeError(f"model.family: '{name}' is unknown.{nearest(name, names)} Use one of {', '.join(names)}.")
    return importlib.import_module(f"mindmodel.models.{name}").FAMILY


def family_of(config: Mapping[str, Any], where: Path) -> Family:
    """The family that a config.json is of.

    Raises:
        ConversionError: if its model_type is unknown here.
    """
    families = [find_family(name) for name in family_names()]
    for family in families:
        if family.model_type == config.get("model_type"):
            return family
    known = ", ".join(family.model_type for family in families)
    raise ConversionError(f"{where}, model_type: {config.get('model_type')!r} is not supported. Known are {known}.")
