"""The recipe as typed frozen objects: one dataclass per section, one string per key.

Paths in a recipe are relative to the working directory, as on a command line; only `base` is relative to its file.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, Mapping, Optional, Union

AXES = ("pp", "dp", "cp", "tp")
"""Of the device mesh, outermost first: keys of `parallel` with a degree."""


def key(meaning: str, default: Any = dataclasses.MISSING, **bounds: Any) -> Any:
    """A key of a section; required when it has no default.

    Args:
        meaning: what --keys prints.
        default: value when the key is absent.
        bounds: `minimum`, `maximum` (inclusive), `above`, `below` (exclusive), for a number or each number of a list.
    """
    return dataclasses.field(default=default, metadata={"meaning": meaning, **bounds})


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained length.

    Source: names and meaning as `rope_scaling` in Hugging Face's configs.
    """

    type: Literal["linear", "llama3"] = key("linear: all frequencies divided by factor; llama3: only the low ones")
    factor: float = key("how much longer the context becomes", above=0)
    low_freq_factor: float = key("llama3 only", 1.0, above=0)
    high_freq_factor: float = key("llama3 only", 4.0, above=0)
    original_max_position_embeddings: int = key("llama3 only: tokens the model was first trained for", 8192, minimum=1)


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """Architecture of the decoder."""

    family: str = key("architecture: a file in mindmodel/models", "llama")
    hidden_size: int = key("width of the residual stream", minimum=1)
    num_layers: int = key("decoder blocks", minimum=1)
    num_heads: int = key("query heads", minimum=1)
    num_kv_heads: Optional[int] = key("key and value heads; default num_heads", None, minimum=1)
    head_size: Optional[int] = key("width of one head, even; default hidden_size / num_heads", None, minimum=2)
    ffn_size: int = key("inner width of the feed-forward layer", minimum=1)
    vocab_size: Optional[int] = key(
        "rows of the embedding; default the tokenizer's size; larger is padding, cut at export", None, minimum=1
    )
    rope_theta: float = key("base of the rotary frequencies", 10000.0, above=0)
    rope_scaling: Optional[RopeScaling] = key("mapping {type: linear|llama3, factor: ...}", None)
    norm_eps: float = key("added to the mean square in RMSNorm", 1e-5, above=0)
    tied_embeddings: bool = key("the output layer is the embedding", False)
    qk_norm: Optional[bool] = key("RMSNorm on each query and key head; default the family's", None)
    init_std: float = key("standard deviation of fresh weights", 0.02, above=0)

    @property
    def ffn_blocks(self) -> int:
        """Blocks in the row order of the fused gate and up weight; tensor parallelism must divide it."""
        return math.gcd(self.ffn_size, 16)


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """Text and tokens. Exactly one of `source` and `path`."""

    source: Optional[tuple[str, ...]] = key(
        "raw text to prepare: stdlib (Python's own library), a file, folder or glob, or a list of them", None
    )
    path: Optional[str] = key("folder of prepared shards, instead of source", None)
    tokenizer: str = key("train, or a tokenizer.json, or a folder that holds one", "train")
    tokenizer_vocab_size: int = key("size of a trained tokenizer, in tokens", 4096, minimum=260)
    seq_len: int = key("tokens of a sequence", minimum=2)
    heldout: float = key("share of the documents held out for evaluation", 0.05, minimum=0, below=1)


@dataclass(frozen=True, kw_only=True)
class ParallelSection:
    """Degrees of the device mesh and what is cut over it."""

    dp: Union[int, Literal["auto"]] = key("data parallel degree; auto: the devices that are left", "auto", minimum=1)
    tp: Union[int, Literal["auto"]] = key("tensor parallel degree", 1, minimum=1)
    pp: Union[int, Literal["auto"]] = key("pipeline stages", 1, minimum=1)
    cp: Union[int, Literal["auto"]] = key("context parallel degree", 1, minimum=1)
    micro_batches: int = key("parts of a rank's sequences; gradients are summed over them", 1, minimum=1)
    sequence_parallel: bool = key("norms and residuals split over the tp ranks", False)
    gathered_tokens: Literal["again", "kept"] = key(
        "of sequence_parallel, in the backward pass; kept: a third less is gathered over tp, more memory", "again"
    )
    shard_optimizer: Literal["none", "states", "gradients", "parameters"] = key(
        "what is split over the dp ranks", "none"
    )
    recompute: Literal["none", "selective", "full"] = key(
        "computed again in the backward pass; selective: norms, SwiGLU, logits; full: layers; a CPU keeps all", "none"
    )
    recompute_layers: Optional[int] = key("only the first N layers of a stage; default all", None, minimum=0)
    stages: Optional[tuple[int, ...]] = key("layers of each pipeline stage; default balanced", None, minimum=1)
    interleave: int = key("chunks of each pipeline stage, which take turns; fills the pipeline sooner", 1, minimum=1)
    cp_method: Literal["gather"] = key("how a cp rank sees all keys; gather: by an all-gather, the only way", "gather")
    reduce_dtype: Literal["float32", "compute"] = key(
        "of gradients that ranks sum; compute: train.compute_dtype, half the bytes", "float32"
    )

    @property
    def degrees(self) -> dict[str, Union[int, Literal["auto"]]]:
        """By axis, outermost first."""
        return {name: getattr(self, name) for name in AXES}


@dataclass(frozen=True, kw_only=True)
class TrainSection:
    """Length, batch and safety of the run."""

    steps: int = key("optimizer steps of the whole run", minimum=1)
    stop_at: Optional[int] = key("end this process after that step, the run unfinished", None, minimum=1)
    tokens_per_step: int = key("tokens of the global batch", minimum=1)
    compute_dtype: Literal["float32", "bfloat16"] = key(
        "of matmuls and activations; master weights stay float32", "float32"
    )
    clip_norm: float = key("largest global gradient norm; 0 is off", 1.0, minimum=0)
    z_loss: float = key("weight of the squared log of the softmax denominator; 0 is off", 0.0, minimum=0)
    seed: int = key("of weights and sample order", 1, minimum=0)
    check_finite: Literal["stop", "skip", "none"] = key(
        "what to do, before the weights are touched, when loss or gradients are not finite", "stop"
    )
    eval_every: int = key("steps between evaluations; 0: only at the end", 0, minimum=0)
    max_hours: Optional[float] = key("hours after which the run is saved and left, exit code 0", None, above=0)
    init_from: Optional[str] = key("run, checkpoint or Hugging Face folder: weights only, fresh optimizer", None)


@dataclass(frozen=True, kw_only=True)
class OptimSection:
    """Optimizer and learning rate."""

    name: Literal["adamw"] = key("adamw: decoupled weight decay", "adamw")
    peak_lr: float = key("learning rate after warm-up", 3e-4, above=0)
    warmup_steps: int = key("steps of linear warm-up", 0, minimum=0)
    schedule: Literal["cosine", "linear", "wsd", "constant"] = key(
        "wsd: constant, then linear over the last fifth", "cosine"
    )
    final_lr_ratio: float = key("last learning rate over peak_lr", 0.1, minimum=0, maximum=1)
    weight_decay: float = key("decoupled, per step times the learning rate; never on norms", 0.1, minimum=0)
    beta1: float = key("decay of the first moment", 0.9, minimum=0, below=1)
    beta2: float = key("decay of the second moment", 0.95, minimum=0, below=1)
    eps: float = key("added to the root of the second moment", 1e-8, above=0)
    decay_embeddings: bool = key("weight decay on the embedding too", True)


@dataclass(frozen=True, kw_only=True)
class CheckpointSection:
    """When to save and what to keep."""

    every: int = key("steps between checkpoints; 0: only at the end", 0, minimum=0)
    keep: int = key("newest checkpoints to keep", 2, minimum=1)
    keep_every: int = key("keep each checkpoint whose step is a multiple, for ever; 0 is off", 0, minimum=0)
    keep_best: bool = key("keep the checkpoint of the lowest held-out loss too", False)


@dataclass(frozen=True, kw_only=True)
class RuntimeSection:
    """This machine."""

    output: Optional[str] = key("run folder; default runs/<recipe name>", None)
    device: Literal["auto", "cpu", "ascend"] = key("auto: ascend where there is one", "auto")
    threads: Optional[int] = key("CPU threads; default all cores this process may use", None, minimum=1)
    cpu_kernels: Literal["auto", "graph", "native"] = key(
        "graph: MindSpore's operators; native: C++, built at first use; auto: native where it can be built", "auto"
    )
    mode: Literal["graph", "pynative"] = key(
        "graph: a step is one compiled graph; pynative: Python runs its operators one by one, slowly: for breakpoints",
        "graph",
    )
    compile_cache: bool = key("keep compiled graphs, so that the next start of the same recipe is quicker", True)
    deterministic: bool = key("only kernels that give the same bits every time", False)
    devices_per_node: int = key("devices that share a machine and its fast links", 8, minimum=1)


@dataclass(frozen=True, kw_only=True)
class LogSection:
    """What is written down."""

    every: int = key("steps between lines of metrics.jsonl", 10, minimum=1)
    norms_every: int = key(
        "steps between lines with each layer's norms of weights, gradients, updates and activations; 0 is off",
        0,
        minimum=0,
    )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole recipe. `name` is the file's stem, or the `name:` that a run's recipe.yaml records."""

    name: str
    model: ModelSection
    data: DataSection
    parallel: ParallelSection
    train: TrainSection
    optim: OptimSection
    checkpoint: CheckpointSection
    runtime: RuntimeSection
    log: LogSection

    @property
    def sequences_per_step(self) -> int:
        """Sequences of the global batch."""
        return self.train.tokens_per_step // self.data.seq_len

    @property
    def sequences_per_rank(self) -> int:
        """Sequences that a data-parallel rank computes in a step: its share of the batch, filled up with ignored ones
        where the ranks and micro-batches cannot share evenly. dp must be known."""
        parallel = self.parallel
        return parallel.micro_batches * -(-self.sequences_per_step // (int(parallel.dp) * parallel.micro_batches))

    @property
    def padded_sequences(self) -> int:
        """Sequences of the global batch with those that only fill it up. dp must be known."""
        return int(self.parallel.dp) * self.sequences_per_rank

    @property
    def output(self) -> str:
        """The run folder."""
        return self.runtime.output or f"runs/{self.name}"

    def with_keys(self, keys: Mapping[str, Any]) -> Recipe:
        """The recipe with some keys set, such as {"train.steps": 100}; nothing is checked."""
        changed = self
        for dotted, value in keys.items():
            section, _, name = dotted.partition(".")
            new = dataclasses.replace(getattr(changed, section), **{name: value})
            changed = dataclasses.replace(changed, **{section: new})
        return changed


SECTIONS: dict[str, type] = {
    "model": ModelSection,
    "data": DataSection,
    "parallel": ParallelSection,
    "train": TrainSection,
    "optim": OptimSection,
    "checkpoint": CheckpointSection,
    "runtime": RuntimeSection,
    "log": LogSection,
}
