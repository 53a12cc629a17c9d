"""What one training step computed, place by place, and the folder that keeps it. Imports no mindspore.

A place is where in the model an array was taken: for activations and their gradients the path of the Cell that made
them, such as `layers.0.attention.qkv`, in the order of the forward pass; for weights the parameter's name.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Mapping

import numpy as np

from mindmodel.data.loader import Batch
from mindmodel.errors import TraceError
from mindmodel.files import file_inside, read_json, sync_folder, write_folder_safely, write_text_safely
from mindmodel.recipe.schema import ModelSection
from mindmodel.tensor_file import TensorFile, write_tensors

KINDS = ("activation", "activation_grad", "weight_grad", "weight")
"""Of arrays: outputs of Cells; gradients of the mean loss by them; by the weights, before clipping; the weights after
the step."""
DTYPES = ("float32", "bfloat16")
INPUT = "input"
"""Kind, in the file, of the batch: its places are `ids` and `labels`."""
LOGITS = "logits"
"""The last place. Only activations have it: the loss makes its own logits, in slices, and no gradient of all."""
LIBRARY = "mindspore"
INDEX_NAME, TENSORS_NAME = "trace.json", "trace.safetensors"
VERSION = 1
LAYER = re.compile(r"layers\.(\d{1,4})(?:\.|$)")
"""A larger number is that of a damaged file."""
CLIP_EPS = 1e-6
"""As TrainStep's."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One training step.

    Attributes:
        source: what was traced, for the reader.
        dtype: of matmuls and activations: float32 or bfloat16.
        loss: mean cross entropy of the batch.
        grad_norm: global norm of the gradients before clipping.
        lr: learning rate of the step.
        batch: sequences and labels.
        tensors: kind (of KINDS) -> place -> array [rows, columns] or a weight's shape; float32 or bfloat16.
        library: whose operators computed it; two of them round bfloat16 at other points within a layer.
    """

    source: str
    dtype: str
    loss: float
    grad_norm: float
    lr: float
    batch: Batch
    tensors: Mapping[str, Mapping[str, np.ndarray]]
    library: str = LIBRARY


def flow(num_layers: int) -> dict[str, tuple[str, ...]]:
    """Every place of activations in the order of the forward pass, with the places whose sum it is computed from.

    The finest set that all kernels of the CPU and of Ascend give. `attention_norm` and `mlp_norm` are what the branch
    gets; `layers.0` is the residual stream behind the layer; rows of `qkv` and `gate_up` are fused as the weights are.
    """
    found: dict[str, tuple[str, ...]] = {"embedding": ()}
    before = "embedding"
    for layer in (f"layers.{number}" for number in range(num_layers)):
        attended = f"{layer}.attention.out"
        found[f"{layer}.attention_norm"] = (before,)
        found[f"{layer}.attention.qkv"] = (f"{layer}.attention_norm",)
        found[f"{layer}.attention.causal_attention"] = (f"{layer}.attention.qkv",)
        found[attended] = (f"{layer}.attention.causal_attention",)
        found[f"{layer}.mlp_norm"] = (before, attended)
        found[f"{layer}.mlp.gate_up"] = (f"{layer}.mlp_norm",)
        found[f"{layer}.mlp.swiglu"] = (f"{layer}.mlp.gate_up",)
        found[f"{layer}.mlp.down"] = (f"{layer}.mlp.swiglu",)
        found[layer] = (before, attended, f"{layer}.mlp.down")
        before = layer
    return {**found, "norm": (before,), LOGITS: ("norm",)}


def places(model: ModelSection) -> dict[str, int]:
    """Columns of the activation at each place; rows are tokens, B S of them."""
    width, size = model.hidden_size, model.head_size or model.hidden_size // model.num_heads
    kv_heads = model.num_kv_heads or model.num_heads
    columns = {
        "qkv": (model.num_heads + 2 * kv_heads) * size, "causal_attention": model.num_heads * size,
        "gate_up": 2 * model.ffn_size, "swiglu": model.ffn_size, LOGITS: int(model.vocab_size or 0),
    }
    return {place: columns.get(place.rpartition(".")[2], width) for place in flow(model.num_layers)}


def flow_among(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The flow of a model, as deep as the deepest layer among some places or names of weights."""
    return flow(max((int(found[1]) for found in map(LAYER.match, names) if found), default=-1) + 1)


def global_norm(gradients: Mapping[str, np.ndarray]) -> float:
    """Of all of them together."""
    return float(np.sqrt(sum(np.sum(np.square(array, dtype=np.float64)) for array in gradients.values())))


def clip_scale(norm: float, clip_norm: float) -> float:
    """What the optimizer multiplies gradients of this norm by; a `clip_norm` of 0 does not clip."""
    return min(clip_norm / (norm + CLIP_EPS), 1.0) if clip_norm > 0 else 1.0


def refuse_other_folder(folder: Path, index: str = INDEX_NAME, kind: str = "trace") -> None:
    """A trace, or a dump, replaces an older one and nothing else.

    Args:
        index: the file in it that such a folder is known by.
        kind: in words.

    Raises:
        TraceError: if something else stands there.
    """
    if folder.exists() and not (folder / index).is_file():
        raise TraceError(f"{folder}: exists and is no {kind}. Choose a new folder.")


def write_trace(trace: Trace, folder: Path) -> None:
    """Write a trace to a folder, which appears when it is whole and replaces an older trace.

    Raises:
        TraceError: if something other than a trace stands there.
        OSError: as the system reports it.
    """
    folder = Path(folder)
    refuse_other_folder(folder)
    arrays = {f"{kind}/{place}": array for kind, place, array in _arrays(trace)}
    with write_folder_safely(folder) as new:
        written = write_tensors(new / TENSORS_NAME, arrays)
        index = {
            "version": VERSION, "source": trace.source, "dtype": trace.dtype, "library": trace.library,
            "loss": json_number(trace.loss), "grad_norm": json_number(trace.grad_norm), "lr": trace.lr,
            "bytes": written.num_bytes,
            "tensors": [{"name": name, "sha256": written.sha256[name]} for name in arrays],
        }
        write_text_safely(new / INDEX_NAME, json.dumps(index, indent=1))
        sync_folder(new)


def read_trace(folder: Path) -> Trace:
    """The trace in a folder, all numbers verified.

    Raises:
        TraceError: if it is missing, damaged or of another version.
    """
    path = Path(folder) / INDEX_NAME
    index = read_json(path, TraceError)
    if index.get("version") != VERSION:
        raise TraceError(f"{path}: version {index.get('version')!r}; this mindmodel reads {VERSION}. Trace again.")
    try:
        names = {str(entry["name"]): str(entry["sha256"]) for entry in index["tensors"]}
        arrays = _verified(Path(folder), names, index["bytes"])
        return Trace(
            source=str(index["source"]),
            dtype=DTYPES[DTYPES.index(index["dtype"])],
            loss=float(index["loss"]),
            grad_norm=float(index["grad_norm"]),
            lr=float(index["lr"]),
            batch=Batch(ids=arrays[INPUT]["ids"], labels=arrays[INPUT]["labels"]),
            tensors={kind: arrays[kind] for kind in KINDS},
            library=str(index["library"]),
        )
    except (KeyError, OverflowError, TypeError, ValueError) as fault:
        raise TraceError(f"{path}: damaged ({type(fault).__name__}: {fault}). Trace again.") from fault


def _arrays(trace: Trace) -> list[tuple[str, str, np.ndarray]]:
    """Kind, place and array of everything that is kept, in order."""
    found = [(INPUT, "ids", trace.batch.ids), (INPUT, "labels", trace.batch.labels)]
    for kind in KINDS:
        found += [(kind, place, array) for place, array in trace.tensors[kind].items()]
    return found


def _verified(folder: Path, names: Mapping[str, str], num_bytes: Any) -> dict[str, dict[str, np.ndarray]]:
    """The arrays by kind and place, in the index's order."""
    path = file_inside(folder, TENSORS_NAME, TraceError)
    if path.stat().st_size != num_bytes:
        raise TraceError(f"{path}: {path.stat().st_size} bytes, {INDEX_NAME} says {num_bytes}. Trace again.")
    file = TensorFile(path, TraceError)
    if set(file.names) != set(names):
        raise TraceError(f"{path}: other arrays than those that {INDEX_NAME} names. Trace again.")
    found: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in (INPUT, *KINDS)}
    for name, digest in names.items():
        if file.sha256(name) != digest:
            raise TraceError(f"{path}: '{name}' is damaged: its checksum is another. Trace again.")
        kind, _, place = name.partition("/")
        found[kind][place] = file.array(name)
    return found


def json_number(number: float) -> Any:
    """A number as JSON has it: those that are not finite as text."""
    return number if math.isfinite(number) else str(number)
