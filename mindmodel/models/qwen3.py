"""Qwen3, dense: Llama with a norm on each query and key head, and a head size of its own."""

from mindmodel.convert.rules import Rename
from mindmodel.models.family import Family
from mindmodel.models.llama import RULES, THEIRS

FAMILY = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    qk_norm=True,
    rope_scaling_types=("linear", "llama3"),
    rules=(
        *RULES,
        Rename(ours="layers.*.attention.q_norm.weight", theirs=f"{THEIRS}.self_attn.q_norm.weight"),
        Rename(ours="layers.*.attention.k_norm.weight", theirs=f"{THEIRS}.self_attn.k_norm.weight"),
    ),
    fixed_entries={"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False},
    checked_entries={"layer_types": "full_attention"},
    default_entries={"head_dim": 128, "num_key_value_heads": 32},
)
