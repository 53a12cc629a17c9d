"""Llama: the plain decoder. Covers Llama 1 to 3.3 and what others publish as `LlamaForCausalLM`."""

from mindmodel.models.family import Family
from mindmodel.models.weight_rules import Join, Recomputed, Rename, Rule, Tie, ffn_blocks, kv_groups

THEIRS = "model.layers.*"

RULES: tuple[Rule, ...] = (
    Rename(ours="embedding.weight", theirs="model.embed_tokens.weight"),
    Rename(ours="layers.*.attention_norm.weight", theirs=f"{THEIRS}.input_layernorm.weight"),
    Join(
        ours="layers.*.attention.qkv.weight",
        theirs=tuple(f"{THEIRS}.self_attn.{name}_proj.weight" for name in ("q", "k", "v")),
        order=kv_groups,
    ),
    Rename(ours="layers.*.attention.out.weight", theirs=f"{THEIRS}.self_attn.o_proj.weight"),
    Rename(ours="layers.*.mlp_norm.weight", theirs=f"{THEIRS}.post_attention_layernorm.weight"),
    Join(
        ours="layers.*.mlp.gate_up.weight",
        theirs=tuple(f"{THEIRS}.mlp.{name}_proj.weight" for name in ("gate", "up")),
        order=ffn_blocks,
    ),
    Rename(ours="layers.*.mlp.down.weight", theirs=f"{THEIRS}.mlp.down_proj.weight"),
    Rename(ours="norm.weight", theirs="model.norm.weight"),
    Tie(ours="head.weight", theirs="lm_head.weight", source="embedding.weight"),
    Recomputed(theirs=f"{THEIRS}.self_attn.rotary_emb.inv_freq"),
)

MINDFORMERS_RULES: tuple[Rule, ...] = (
    Rename(ours="embedding.weight", theirs="model.tok_embeddings.embedding_weight"),
    Rename(ours="layers.*.attention_norm.weight", theirs=f"{THEIRS}.attention_norm.weight"),
    Join(
        ours="layers.*.attention.qkv.weight",
        theirs=tuple(f"{THEIRS}.attention.{name}.weight" for name in ("wq", "wk", "wv")),
        order=kv_groups,
    ),
    Rename(ours="layers.*.attention.out.weight", theirs=f"{THEIRS}.attention.wo.weight"),
    Rename(ours="layers.*.mlp_norm.weight", theirs=f"{THEIRS}.ffn_norm.weight"),
    Join(
        ours="layers.*.mlp.gate_up.weight",
        theirs=tuple(f"{THEIRS}.feed_forward.{name}.weight" for name in ("w1", "w3")),
        order=ffn_blocks,
    ),
    Rename(ours="layers.*.mlp.down.weight", theirs=f"{THEIRS}.feed_forward.w2.weight"),
    Rename(ours="norm.weight", theirs="model.norm_out.weight"),
    Tie(ours="head.weight", theirs="lm_head.weight", source="embedding.weight"),
)
"""To MindFormers' LlamaForCausalLM as it is by default, without `qkv_concat`."""

FAMILY = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    model_type="llama",
    qk_norm=False,
    rope_scaling_types=("linear", "llama3"),
    rules=RULES,
    mindformers_rules=MINDFORMERS_RULES,
    fixed_entries={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
)
