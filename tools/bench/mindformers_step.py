"""Child: MindFormers' training steps, with the operators replaced that the CPU lacks."""

from __future__ import annotations

from pathlib import Path

from bench.child import Work, serve
from bench.sizes import PEAK_LR, SIZES, Size, batch

from mindmodel.convert.folder import read_tensors
from mindmodel.models.weight_rules import Join, Rename, RowOrder, kv_groups, to_ours
from mindmodel.parallel.environment import prepare_environment
from mindmodel.recipe.schema import RuntimeSection

OURS, THEIRS = "decoder.layers.*", "model.layers.*"
RULES = (
    Rename(ours="embedding.word_embeddings.weight", theirs="model.embed_tokens.weight"),
    Rename(ours=f"{OURS}.input_layernorm.weight", theirs=f"{THEIRS}.input_layernorm.weight"),
    Join(
        ours=f"{OURS}.self_attention.linear_qkv.weight",
        theirs=tuple(f"{THEIRS}.self_attn.{name}_proj.weight" for name in ("q", "k", "v")),
        order=kv_groups,
    ),
    Rename(ours=f"{OURS}.self_attention.linear_proj.weight", theirs=f"{THEIRS}.self_attn.o_proj.weight"),
    Rename(ours=f"{OURS}.pre_mlp_layernorm.weight", theirs=f"{THEIRS}.post_attention_layernorm.weight"),
    Join(
        ours=f"{OURS}.mlp.linear_fc1.weight",
        theirs=tuple(f"{THEIRS}.mlp.{name}_proj.weight" for name in ("gate", "up")),
        order=lambda model: RowOrder(num_groups=1, shares=(1, 1)),
    ),
    Rename(ours=f"{OURS}.mlp.linear_fc2.weight", theirs=f"{THEIRS}.mlp.down_proj.weight"),
    Rename(ours="decoder.final_layernorm.weight", theirs="model.norm.weight"),
    Rename(ours="output_layer.weight", theirs="lm_head.weight"),
)
"""From Hugging Face's names to MindFormers'."""

DTYPES = ("params", "compute", "layernorm_compute", "softmax_compute", "rotary")


def load(spec: dict):
    """Spec: size, threads, folder (the weights)."""
    prepare_environment(RuntimeSection(threads=spec["threads"], cpu_kernels="graph"))
    import mindformers_on_cpu
    import mindspore as ms
    import numpy as np
    from mindformers import build_context
    from mindformers.core.optim import AdamW
    from mindformers.models.qwen3.configuration_qwen3 import Qwen3Config
    from mindformers.models.qwen3.modeling_qwen3_train import TrainingQwen3ForCausalLM
    from mindformers.wrapper.wrapper import MFTrainOneStepCell

    size = SIZES[spec["size"]]

    def make() -> MFTrainOneStepCell:
        build_context(context_settings(spec["threads"]))
        mindformers_on_cpu.patch(qk_norm=False)
        network = TrainingQwen3ForCausalLM(Qwen3Config(**_config(size))).set_train()
        parameters = network.trainable_params()
        shapes = {parameter.name: tuple(parameter.shape) for parameter in parameters}
        folder = Path(spec["folder"])
        weights = to_ours(RULES, size.model, shapes, read_tensors(folder), folder)
        for parameter in parameters:
            parameter.set_data(ms.Tensor(weights[parameter.name].read()))
        optimizer = AdamW(_groups(parameters), learning_rate=PEAK_LR, betas=(0.9, 0.999), eps=1e-8)
        return MFTrainOneStepCell(network, optimizer, use_clip_grad=True, max_grad_norm=1.0).set_train()

    def build() -> Work:
        step = make()
        positions = ms.Tensor(np.tile(np.arange(size.seq_len, dtype=np.int32), (size.num_sequences, 1)))
        all_count = ms.Tensor(np.ones((size.num_sequences, size.seq_len), np.float32))

        def work(index: int) -> float:
            ids, labels = map(ms.Tensor, batch(size, index))
            outputs = step(ids, positions, None, None, labels, None, None, all_count)
            return float(outputs[0].asnumpy().reshape(-1)[0])

        return work

    return build


def context_settings(threads: int) -> dict:
    """What MindFormers reads before a model is made."""
    return {
        "use_legacy": False,
        "run_mode": "train",
        "use_parallel": False,
        "parallel": {},
        "context": {"mode": 0, "device_target": "CPU", "runtime_num_threads": threads},
    }


def _groups(parameters: list) -> list[dict]:
    """Norms have no weight decay."""
    matrices = [parameter for parameter in parameters if len(parameter.shape) > 1]
    norms = [parameter for parameter in parameters if len(parameter.shape) == 1]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]


def _config(size: Size) -> dict:
    """Of a Qwen3 in float32."""
    return {
        "vocab_size": size.vocab_size,
        "hidden_size": size.hidden_size,
        "intermediate_size": size.ffn_size,
        "num_hidden_layers": size.num_layers,
        "num_attention_heads": size.num_heads,
        "num_key_value_heads": size.num_heads,
        "head_dim": size.hidden_size // size.num_heads,
        "hidden_act": "swiglu",
        "max_position_embeddings": size.seq_len,
        "seq_length": size.seq_len,
        "rms_norm_eps": size.model.norm_eps,
        "rope_theta": size.model.rope_theta,
        "use_flash_attention": True,
        "add_bias_linear": False,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "untie_embeddings_and_output_weights": True,
        "tie_word_embeddings": False,
        "position_embedding_type": "rope",
        "use_contiguous_weight_layout_attention": False,
        "use_interleaved_weight_layout_mlp": False,
        "input_sliced_sig": True,
        **{f"{name}_dtype": "float32" for name in DTYPES},
        "fp32_residual_connection": True,
    }


if __name__ == "__main__":
    serve(load)
