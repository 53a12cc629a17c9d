"""Child: MindFormers' own training step, compiled and played once as an Ascend chip's, in the working folder.

The chain of Cells is that of its Trainer, with its published settings: the optimizer over groups by weight decay, the
learning rate's schedule inside the graph, clipping, the check for overflow. Started with the environment of a dry run;
the argument is a JSON object. Needs no chip and no CANN.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

from mindmodel.dryrun.jobs import RESULT_NAME
from mindmodel.parallel.mesh import mesh_of
from mindmodel.recipe.load import recipe_from_dict
from mindmodel.recipe.schema import Recipe

RUNTIME = {"MS_DEV_RUNTIME_CONF": "switch_inline:False,all_finite:True"}
"""For its environment: a dry run does not play the branch on overflow while that is inlined."""
THRESHOLD = 64
"""KiB from which a parameter's optimizer state is split over dp, as in its published settings."""


def main(recipe: Recipe, rank: int, settings: dict[str, Any]) -> None:
    """Compile, play one step, and write down the peak of memory and the CPU seconds, those of imports not counted.

    Args:
        settings: model: keys of its LlamaConfig; optimizer: keys of its AdamW.
    """
    import mindspore as ms
    import numpy as np
    from mindspore.nn.utils import no_init_parameters

    _set_context(recipe, rank)
    import mindformers  # noqa: F401

    begin_s = _cpu_s()
    _pretend_910b()
    with no_init_parameters():
        step = _step(recipe, settings)
    shape = recipe.padded_sequences, recipe.data.seq_len + 1
    step(ms.Tensor(np.ones(shape, np.int32)))
    ms.runtime.synchronize()
    result = {"peak_bytes": ms.runtime.max_memory_allocated(), "cpu_s": _cpu_s() - begin_s}
    Path(RESULT_NAME).write_text(json.dumps(result))


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _set_context(recipe: Recipe, rank: int) -> None:
    """As its published settings do: whole batches, gradients summed."""
    import mindspore as ms
    from mindspore.communication import init
    from mindspore.parallel._auto_parallel_context import auto_parallel_context

    mesh, sharded = mesh_of(recipe.parallel), recipe.parallel.shard_optimizer
    ms.set_context(mode=ms.GRAPH_MODE, device_target="Ascend", max_call_depth=10000, jit_config={"jit_level": "O0"})
    init()
    ms.set_auto_parallel_context(
        parallel_mode="semi_auto_parallel",
        device_num=mesh.num_devices,
        global_rank=rank,
        pipeline_stages=mesh.pp,
        gradients_mean=False,
        full_batch=True,
        enable_alltoall=False,
        enable_parallel_optimizer=sharded != "none",
        parallel_optimizer_config={
            "gradient_accumulation_shard": sharded == "gradients",
            "parallel_optimizer_threshold": THRESHOLD,
        },
    )
    auto_parallel_context().set_init_param_in_compile(False)


def _pretend_910b() -> None:
    """A dry run has no chip's name, and for a nameless one the check for overflow is that of the first 910."""
    from mindspore.nn.wrap import loss_scale

    class Context:
        """In place of MSContext."""

        @staticmethod
        def get_instance():
            return Context

        @staticmethod
        def get_ascend_soc_version():
            return "ascend910b"

    loss_scale.MSContext = Context


def _step(recipe: Recipe, settings: dict[str, Any]) -> Any:
    """The training step around model and optimizer."""
    from mindformers.wrapper.wrapper import MFPipelineWithLossScaleCell, MFTrainOneStepCell
    from mindspore import nn
    from mindspore.nn.wrap.cell_wrapper import _VirtualDatasetCell

    model = _model(recipe, settings["model"])
    model.set_train()
    optimizer = _optimizer(recipe, model, settings["optimizer"])
    clipping = {"use_clip_grad": True, "max_grad_norm": recipe.train.clip_norm, "scale_sense": 1.0}
    if mesh_of(recipe.parallel).pp == 1:
        return MFTrainOneStepCell(_VirtualDatasetCell(model), optimizer, **clipping).set_train()
    parts = recipe.parallel.micro_batches
    network = _VirtualDatasetCell(nn.PipelineCell(model, parts))
    return MFPipelineWithLossScaleCell(network, optimizer, micro_batch_num=parts, **clipping).set_train()


def _model(recipe: Recipe, settings: dict[str, Any]) -> Any:
    """Its Llama. Without a pipeline its Trainer switches lazy inlining off, which the keyword `config` carries."""
    from mindformers.models.llama.llama import LlamaForCausalLM
    from mindformers.models.llama.llama_config import LlamaConfig
    from mindformers.modules.transformer.transformer import TransformerOpParallelConfig, TransformerRecomputeConfig

    model, mesh = recipe.model, mesh_of(recipe.parallel)
    recompute = TransformerRecomputeConfig(
        recompute=recipe.parallel.recompute == "full",
        parallel_optimizer_comm_recompute=False,
        mp_comm_recompute=True,
        recompute_slice_activation=True,
    )
    layout = TransformerOpParallelConfig(
        data_parallel=mesh.dp,
        model_parallel=mesh.tp,
        pipeline_stage=mesh.pp,
        micro_batch_num=recipe.parallel.micro_batches,
        use_seq_parallel=recipe.parallel.sequence_parallel,
        vocab_emb_dp=False,
        gradient_aggregation_group=4,
        recompute=recompute,
    )
    sizes = {
        "batch_size": 1,
        "seq_length": recipe.data.seq_len,
        "hidden_size": model.hidden_size,
        "num_layers": model.num_layers,
        "num_heads": model.num_heads,
        "intermediate_size": model.ffn_size,
        "vocab_size": model.vocab_size,
    }
    dtypes = {"compute_dtype": "bfloat16", "param_init_type": "float32", "layernorm_compute_type": "float32"}
    dtypes |= {"softmax_compute_type": "float32", "rotary_dtype": "float32"}
    kernels = {"use_flash_attention": True, "fused_rms_norm": True, "disable_lazy_inline": mesh.pp == 1}
    config = LlamaConfig(**{**sizes, **dtypes, **kernels, "pad_token_id": 0, **settings}, parallel_config=layout)
    return LlamaForCausalLM(config=config)


def _optimizer(recipe: Recipe, model: Any, settings: dict[str, Any]) -> Any:
    """Its AdamW over groups with and without weight decay, the learning rate as a Cell."""
    from mindformers.core.lr import CosineWithWarmUpLR
    from mindformers.core.optim import build_optim
    from mindformers.trainer.optimizer_grouped_parameters import get_optimizer_grouped_parameters

    optim = recipe.optim
    schedule = CosineWithWarmUpLR(
        learning_rate=optim.peak_lr, lr_end=0.0, warmup_steps=optim.warmup_steps, total_steps=recipe.train.steps
    )
    groups = get_optimizer_grouped_parameters(
        model=model,
        weight_decay=optim.weight_decay,
        dynamic_lr_schedule=schedule,
        optimizer_type="AdamW",
        model_params=set(model.get_parameters()),
    )
    chosen = {"type": "AdamW", "betas": (optim.beta1, optim.beta2), "eps": optim.eps, **settings}
    return build_optim(chosen, default_args={"params": groups, "learning_rate": schedule})


if __name__ == "__main__":
    spec = json.loads(sys.argv[1])
    main(recipe_from_dict(spec["recipe"], "the benchmark"), spec["rank"], spec["settings"])
