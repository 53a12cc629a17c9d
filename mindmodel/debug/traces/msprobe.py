"""Traces and the dumps of msprobe's PrecisionDebugger, in both directions.

A dump is a folder with dump.json (what each Cell was given and gave, with largest, smallest and mean number and norm),
construct.json (which Cell stands in which), stack.json (who called them) and dump_tensor_data/*.npy. A Cell's entry is
`Cell.PATH.CLASS.forward.CALL`; in `backward` the inputs are the gradients by its outputs.

The step differentiates the sum of the loss over the labels, as a debugger sees it; a trace has gradients of the mean.
Nothing in a dump is trusted: names stay in the folder, arrays must be what dump.json says, and nothing is unpickled.

Source: layout as mindstudio-probe 26.2 writes it, levels L0 and mix, task tensor.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional

import ml_dtypes
import numpy as np

from mindmodel.data.loader import Batch
from mindmodel.debug.traces.trace import LOGITS, Trace, flow_among, global_norm, refuse_other_folder
from mindmodel.errors import TraceError
from mindmodel.files import file_inside, read_json, sync_folder, write_folder_safely, write_text_safely

DUMP, CONSTRUCT, STACK, ARRAYS = "dump.json", "construct.json", "stack.json", "dump_tensor_data"
STEP = "step0/rank0"
"""Of the one step that is written."""
ENTRY = re.compile(r"Cell\.(?P<path>.+)\.(?P<kind>\w+)\.(?P<what>forward|backward|parameters_grad)\.0")
"""Of the first call of a Cell."""
DTYPES = {"float32": "Float32", "bfloat16": "BFloat16", "int32": "Int32"}
CLASSES = {
    "embedding": "Embedding", "attention_norm": "ResidualNorm", "mlp_norm": "ResidualNorm", "norm": "RMSNorm",
    "q_norm": "RMSNorm", "k_norm": "RMSNorm", "causal_attention": "CausalAttentionCPU", "swiglu": "SwiGLUCPU",
    "attention": "Attention", "mlp": "MLP",
}
"""Of the Cells that are neither a layer nor a product, by the last word of their path."""
ENDS = {"attention": "out", "mlp": "down"}
"""Cells that give what their last one gives."""
LOSS = "Cell.loss.HeadLoss"
WEIGHT = ".weight"

Json = dict[str, Any]


def write_dump(trace: Trace, folder: Path) -> Path:
    """Write a trace as a dump of one step; gives the folder that holds dump.json.

    Raises:
        TraceError: if something other than a dump stands there.
        OSError: as the system reports it.
    """
    folder = Path(folder)
    refuse_no_dump(folder)
    with write_folder_safely(folder) as new:
        _Writer(trace, new / STEP).write()
    return folder / STEP


def refuse_no_dump(folder: Path) -> None:
    """As refuse_other_folder, where a dump is written."""
    refuse_other_folder(folder, f"{STEP}/{DUMP}", "dump of msprobe's layout")


class _Writer:
    """What is written of a trace."""

    def __init__(self, trace: Trace, folder: Path) -> None:
        self.trace, self.folder = trace, folder
        self.num_labels = max(int((trace.batch.labels >= 0).sum()), 1)
        self.entries: dict[str, Json] = {}

    def write(self) -> None:
        (self.folder / ARRAYS).mkdir(parents=True)
        self._forward()
        self._backward()
        names = [name for name in self.entries if "parameters_grad" not in name]
        contents = {
            DUMP: {
                "task": "tensor", "level": "L0", "framework": "mindspore", "dump_data_dir": ARRAYS,
                "data": self.entries,
            },
            CONSTRUCT: {name: self._parent(name) for name in names},
            STACK: {"0": [names, [f"File {self.trace.source}, line 0, in a compiled graph, \n no call of Python"]]},
        }
        for name, content in contents.items():
            write_text_safely(self.folder / name, json.dumps(content, indent=1))
        sync_folder(self.folder / ARRAYS)

    def _forward(self) -> None:
        ids, activations = self.trace.batch.ids.reshape(-1), self.trace.tensors["activation"]
        for place, array in _with_ends(activations):
            name = f"{cell_of(place)}.forward.0"
            given = [self._leaf(f"{name}.input.0", ids)] if place == "embedding" else []
            leaf = self._leaf(f"{name}.output.{_branch(place)}", array)
            self.entries[name] = {
                "input_args": given, "input_kwargs": {}, "output": [None] * _branch(place) + [leaf], "parameters": {},
            }
        name, labels = f"{LOSS}.forward.0", self.trace.batch.labels.reshape(-1)
        total = np.array(self.trace.loss * self.num_labels, np.float32)
        self.entries[name] = {
            "input_args": [*self._optional(f"{name}.input.0", activations.get("norm")), None,
                           self._leaf(f"{name}.input.2", labels)],
            "input_kwargs": {}, "output": [None, self._leaf(f"{name}.output.1", total)], "parameters": {},
        }

    def _backward(self) -> None:
        name, gradients = f"{LOSS}.backward.0", self.trace.tensors["activation_grad"]
        weight_grads = dict(self.trace.tensors["weight_grad"])
        head = weight_grads.pop(f"head{WEIGHT}", None)  # the loss makes the logits and is given the head's weight
        self.entries[name] = {
            "input": [self._leaf(f"{name}.input.0", np.array(1, np.float32)), None],
            "output": [None, *self._optional(f"{name}.output.1", head, self.num_labels)],
        }
        for place, array in reversed(list(_with_ends(gradients))):
            name = f"{cell_of(place)}.backward.0"
            leaf = self._leaf(f"{name}.input.{_branch(place)}", array * np.float32(self.num_labels))
            self.entries[name] = {"input": [None] * _branch(place) + [leaf], "output": []}
        for weight, array in weight_grads.items():
            name = f"{cell_of(weight.removesuffix(WEIGHT))}.parameters_grad.0"
            leaf = self._leaf(f"{name}.weight", array * np.float32(self.num_labels))
            self.entries[name] = {"weight": [leaf]}

    def _optional(self, name: str, array: Optional[np.ndarray], times: float = 1) -> list[Optional[Json]]:
        """A leaf, or none where the trace lacks it."""
        return [None if array is None else self._leaf(name, array if times == 1 else array * np.float32(times))]

    def _leaf(self, name: str, array: np.ndarray) -> Json:
        """Write an array; gives what stands of it in dump.json. NumPy has no bfloat16: it is written as float32."""
        dtype, array = array.dtype.name, array.astype(np.float32) if array.dtype.name == "bfloat16" else array
        np.save(self.folder / ARRAYS / f"{name}.npy", array, allow_pickle=False)
        numbers = array.astype(np.float64)
        return {
            "type": "mindspore.Tensor", "dtype": DTYPES[dtype], "shape": list(array.shape),
            "Max": float(numbers.max()), "Min": float(numbers.min()), "Mean": float(numbers.mean()),
            "Norm": float(np.linalg.norm(numbers)), "data_name": f"{name}.npy",
        }

    def _parent(self, name: str) -> Optional[str]:
        """The entry of the Cell around a Cell's."""
        path, what = re.fullmatch(r"Cell\.(.+)\.\w+(\.\w+\.0)", name).groups()  # type: ignore[union-attr]
        around = path.rpartition(".")[0].removeprefix("decoder").removeprefix(".")
        parent = f"{cell_of(around)}{what}" if around else None
        return parent if parent in self.entries else None


def _with_ends(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """With the Cells that give what their last one gives, behind it."""
    for place, array in arrays.items():
        yield place, array
        around, _, name = place.rpartition(".")
        if ENDS.get(around.rpartition(".")[2]) == name:
            yield around, array


def _branch(place: str) -> int:
    """Which output of a Cell a place is: a norm at a branch gives the stream first."""
    return 1 if place.endswith(("attention_norm", "mlp_norm")) else 0


def cell_of(place: str) -> str:
    """How msprobe names the Cell of a place: `Cell.decoder.layers.0.attention.qkv.Linear`."""
    path = "head" if place == LOGITS else place
    name = path.rpartition(".")[2]
    return f"Cell.decoder.{path}.{'Block' if name.isdigit() else CLASSES.get(name, 'Linear')}"


def find_dump(path: Path) -> Optional[Path]:
    """The folder of dump.json: the path, the one whose dump.json it is, or the only step and rank in it; else None.

    Raises:
        TraceError: if there are several.
    """
    path = Path(path)
    if path.name == DUMP and path.is_file():
        return path.parent
    if (path / DUMP).is_file():
        return path
    found = sorted(path.glob(f"step*/*/{DUMP}")) or sorted(path.glob(f"*/{DUMP}")) if path.is_dir() else []
    if len(found) > 1:
        raise TraceError(
            f"{path}: holds {len(found)} dumps of msprobe. Name one of them, such as {found[0].parent}."
        )
    return found[0].parent if found else None


def read_dump(folder: Path, seq_len: Optional[int] = None) -> Trace:
    """The trace of a dump of our Cells, made by msprobe or by `write_dump`.

    It has no new weights, and no learning rate (0): a dump is taken before the update.

    Args:
        folder: that holds dump.json.
        seq_len: tokens of a sequence, which a dump does not say; default: all are taken for one.

    Raises:
        TraceError: if it holds statistics alone, is damaged, or of other Cells.
    """
    return _Reader(Path(folder), seq_len).read()


class _Reader:
    """A dump that is read."""

    def __init__(self, folder: Path, seq_len: Optional[int]) -> None:
        self.folder, self.seq_len = folder, seq_len
        content = read_json(folder / DUMP, TraceError)
        if content.get("task") != "tensor":
            raise TraceError(
                f"{folder / DUMP}: task {content.get('task')!r} holds no arrays. Dump with task tensor in msprobe's "
                "config.json."
            )
        self.entries: dict[tuple[str, str], Json] = {}
        data = content.get("data")
        for name, entry in data.items() if isinstance(data, dict) else ():
            match = ENTRY.fullmatch(name)
            if match and isinstance(entry, dict):
                self.entries[_place(match["path"]), match["what"]] = entry

    def read(self) -> Trace:
        tokens = self._needed("embedding", "forward", "input_args", 0).reshape(-1)
        labels = self._needed("loss", "forward", "input_args", 2).reshape(-1)
        num_labels = max(int((labels >= 0).sum()), 1)
        seed = float(self._needed("loss", "backward", "input", 0))  # gradient of what was differentiated by the sum
        scale = np.float32(1.0 / (num_labels * seed)) if seed else np.float32(np.nan)
        gradients = {name: array * scale for name, array in self._weight_grads()}
        activations = dict(self._outputs("forward", "output"))
        return Trace(
            source=f"{self.folder}, dumped by msprobe",
            dtype=next((array.dtype.name for array in activations.values()), "float32"),
            loss=float(self._needed("loss", "forward", "output", 1)) / num_labels,
            grad_norm=global_norm(gradients),
            lr=0.0,
            batch=self._batch(tokens, labels),
            tensors={
                "activation": activations,
                "activation_grad": {
                    place: array.astype(np.float32) * scale for place, array in self._outputs("backward", "input")
                },
                "weight_grad": gradients,
                "weight": {},
            },
        )

    def _batch(self, tokens: np.ndarray, labels: np.ndarray) -> Batch:
        seq_len = self.seq_len or tokens.size
        if tokens.size != labels.size or tokens.size % seq_len:
            raise TraceError(
                f"{self.folder}: {tokens.size} tokens and {labels.size} labels are no sequences of {seq_len}. Give the "
                "recipe that the dump was made with."
            )
        shape = -1, seq_len
        return Batch(ids=tokens.astype(np.int32).reshape(shape), labels=labels.astype(np.int32).reshape(shape))

    def _outputs(self, what: str, key: str) -> Iterator[tuple[str, np.ndarray]]:
        """What the Cells of our places give, or the gradients by it, in the order of the forward pass."""
        for place in flow_among(place for place, _ in self.entries):
            array = self._array(place, what, key, _branch(place))
            if array is not None:
                yield place, array.reshape(-1, array.shape[-1])

    def _weight_grads(self) -> Iterator[tuple[str, np.ndarray]]:
        for place, what in self.entries:
            if what == "parameters_grad":
                array = self._array(place, what, "weight", 0)
                if array is not None:
                    yield f"{'head' if place == LOGITS else place}{WEIGHT}", array.astype(np.float32)
        head = self._array("loss", "backward", "output", 1)  # the loss makes the logits, with the head's weight
        if head is not None and not self._is_tied():
            yield f"head{WEIGHT}", head.astype(np.float32)

    def _is_tied(self) -> bool:
        """Whether the loss is given the embedding, whose gradient then holds the head's."""
        entry = self.entries.get(("embedding", "forward"), {}).get("parameters")
        embedding = self._load(entry.get("weight")) if isinstance(entry, dict) else None
        head = self._array("loss", "forward", "input_args", 1)
        return embedding is not None and head is not None and np.array_equal(embedding, head)

    def _needed(self, place: str, what: str, key: str, index: int) -> np.ndarray:
        array = self._array(place, what, key, index)
        if array is None:
            raise TraceError(
                f"{self.folder / DUMP}: no {what} {key} {index} of a Cell '{place}'. It must be a dump of a whole step "
                "of this package's Cells, DecoderLoss or what holds it, with level L0 or mix."
            )
        return array

    def _array(self, place: str, what: str, key: str, index: int) -> Optional[np.ndarray]:
        leaves = self.entries.get((place, what), {}).get(key)
        return self._load(leaves[index]) if isinstance(leaves, list) and len(leaves) > index else None

    def _load(self, leaf: Any) -> Optional[np.ndarray]:
        """The array of a leaf; None if it is none."""
        if not isinstance(leaf, dict) or "data_name" not in leaf:
            return None
        path = file_inside(self.folder / ARRAYS, leaf["data_name"], TraceError)
        try:
            array = np.lib.format.open_memmap(path, mode="r")  # of numbers alone: objects are refused
        except (OSError, ValueError, EOFError, OverflowError) as fault:
            raise TraceError(f"{path}: no array that NumPy reads ({fault}). Dump again.") from fault
        dtype = leaf.get("dtype")
        if list(array.shape) != leaf.get("shape") or array.dtype.kind not in "fi":
            raise TraceError(
                f"{path}: {array.dtype.name}{list(array.shape)}, and {DUMP} says {dtype} {leaf.get('shape')}. "
                "Dump again."
            )
        if array.dtype.kind == "i":
            return np.array(array)
        return array.astype(ml_dtypes.bfloat16 if dtype == "BFloat16" else np.float32)


def _place(path: str) -> str:
    """Of a Cell's path in the network that was dumped: what stands around the decoder falls away."""
    cells = path.split(".")
    if "decoder" in cells:
        cells = cells[cells.index("decoder") + 1:]
    while cells[:1] == ["network"]:
        cells = cells[1:]
    return LOGITS if cells == ["head"] else ".".join(cells)
