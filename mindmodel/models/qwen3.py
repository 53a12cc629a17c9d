"""Qwen3, dense: Llama with a norm on each query and key head, and a head size of its own."""

from mindmodel.models.family import Family
from mindmodel.models.llama import RULES, THEIRS
from mindmodel.models.weight_rules import Rename, Reorder, Rule, Tie, ffn_blocks, single_rows

MINDFORMERS = "decoder.layers.*"

MINDFORMERS_RULES: tuple[Rule, ...] = (
    Rename(ours="embedding.weight", theirs="embedding.word_embeddings.weight"),
    Rename(ours="layers.*.attention_norm.weight", theirs=f"{MINDFORMERS}.input_layernorm.weight"),
    Rename(ours="layers.*.attention.qkv.weight", theirs=f"{MINDFORMERS}.self_attention.linear_qkv.weight"),
    Rename(ours="layers.*.attention.out.weight", theirs=f"{MINDFORMERS}.self_attention.linear_proj.weight"),
    Rename(ours="layers.*.attention.q_norm.weight", theirs=f"{MINDFORMERS}.self_attention.q_layernorm.weight"),
    Rename(ours="layers.*.attention.k_norm.weight", theirs=f"{MINDFORMERS}.self_attention.k_layernorm.weight"),
    Rename(ours="layers.*.mlp_norm.weight", theirs=f"{MINDFORMERS}.pre_mlp_layernorm.weight"),
    Reorder(
        ours="layers.*.mlp.gate_up.weight",
        theirs=f"{MINDFORMERS}.mlp.linear_fc1.weight",
        order=ffn_blocks,
        their_order=single_rows,
    ),
    Rename(ours="layers.*.mlp.down.weight", theirs=f"{MINDFORMERS}.mlp.linear_fc2.weight"),
    Rename(ours="norm.weight", theirs="decoder.final_layernorm.weight"),
    Tie(ours="head.weight", theirs="output_layer.weight", source="embedding.weight"),
)
"""To MindFormers' Qwen3 as it is by default: query, key and value by head groups as here, gate and up row by row."""

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
    mindformers_rules=MINDFORMERS_RULES,
    fixed_entries={"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False},
    checked_entries={"layer_types": "full_attention"},
    default_entries={"head_dim": 128, "num_key_value_heads": 32},
)
