"""MindFormers' checkpoint folder ("checkpoint 2.0") as files.

`latest_checkpointed_iteration.txt` names the newest `iteration_N`; in it are `common.json`, a safetensors file for each
rank, and, when tensors are cut over ranks, `metadata.json` with their layouts. What a rank holds of a tensor follows
from the layout: the offsets in metadata.json are numbers of slices, not of elements.

Source: mindformers 1.9.0, mindformers.checkpoint.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Mapping

import numpy as np

from mindmodel.checkpoint.blocks import Block, Shape, fault_of_blocks
from mindmodel.errors import ConversionError
from mindmodel.files import file_inside, read_json, write_text_safely
from mindmodel.tensor_file import LazyTensor, TensorFile, batches, write_tensors

TRACKER, METADATA, COMMON = "latest_checkpointed_iteration.txt", "metadata.json", "common.json"
ITERATION_NAME = re.compile(r"iteration_\d{8,}")
WEIGHTS_NAME = re.compile(r"(?:.*-)?model-\d{7}-(\d{7})\.safetensors")
"""The other files are the optimizer's: `opt-...`. The number is that of all such files."""

DTYPE_NAMES = {"float32": "Float32", "float16": "Float16", "bfloat16": "BFloat16"}


def find_iteration(folder: Path) -> Path:
    """The folder of one iteration: the one given, or the newest of a folder of checkpoints.

    Raises:
        ConversionError: if there is none.
    """
    if ITERATION_NAME.fullmatch(folder.name) and folder.is_dir():
        return folder
    tracker = folder / TRACKER
    if not tracker.is_file():
        raise ConversionError(
            f"{folder}: holds no {TRACKER}. Give the folder of MindFormers' checkpoints, or an iteration_N in it."
        )
    text = tracker.read_text(encoding="utf-8", errors="replace").strip()
    iteration = folder / f"iteration_{int(text):08d}" if text.isascii() and text.isdigit() else folder / "iteration_?"
    if not iteration.is_dir():
        raise ConversionError(f"{tracker}: says {text[:20]!r}, and there is no such {iteration.name}.")
    return iteration


def read_tensors(iteration: Path) -> dict[str, LazyTensor]:
    """All weights of an iteration by MindFormers' names, whole; headers are checked, numbers are read later.

    Raises:
        ConversionError: if a file is missing or damaged, leads out of the folder, or does not hold what the layouts
            say.
    """
    where = iteration / METADATA
    if not where.is_file():
        return _read_whole(iteration)
    content, files = read_json(where, ConversionError), dict[str, TensorFile]()
    try:
        tensors = content["state_dict_metadata"].items()
        blocks = {name: _blocks(name, entry, content["storage_data"]) for name, entry in tensors}
        shapes = {name: tuple(entry["global_shape"]) for name, entry in tensors}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ConversionError(f"{where}: a part is missing or of the wrong kind: {error!r}.") from error
    for file in sorted({file for held in blocks.values() for file in held.values()}):
        files[file] = TensorFile(file_inside(iteration, file, ConversionError), ConversionError)
    return {
        name: _joined(name, shapes[name], {block: files[file] for block, file in held.items()})
        for name, held in blocks.items()
        if held
    }


def _read_whole(iteration: Path) -> dict[str, LazyTensor]:
    """Of one process, which writes no metadata."""
    found = {path.name: match for path in iteration.iterdir() if (match := WEIGHTS_NAME.fullmatch(path.name))}
    if not found:
        raise ConversionError(f"{iteration}: holds neither {METADATA} nor model-N-M.safetensors.")
    if len(found) > 1 or any(int(match[1]) > 1 for match in found.values()):
        raise ConversionError(
            f"{iteration}: {METADATA} is missing, which says how the tensors in {', '.join(sorted(found))} are cut. "
            "Copy it too."
        )
    file = TensorFile(iteration / next(iter(found)), ConversionError)
    return {name: file.lazy(name) for name in file.names}


def _blocks(name: str, entry: Mapping[str, Any], storage: Mapping[str, Any]) -> dict[Block, str]:
    """The blocks of a weight, each with a file that holds it; of the optimizer's tensors none."""
    blocks: dict[Block, str] = {}
    for chunk in entry["chunk"]:
        for place in storage[str((name, tuple(chunk["global_offset"])))]:
            if WEIGHTS_NAME.fullmatch(place["file_name"].rpartition("/")[2]):
                held = _held(tuple(entry["global_shape"]), entry["layout"], place["storage_rank"])
                blocks.setdefault(held, place["file_name"])
    return blocks


def _held(shape: Shape, layout: Mapping[str, Any], rank: int) -> Block:
    """What a rank holds of a tensor by MindSpore's layout, whose axes count from the last."""
    if layout["interleaved_parallel"]:
        raise ValueError("a layout with interleaved_parallel, which is not read")
    degrees = layout["device_matrix"]
    coordinates = np.unravel_index(layout["rank_list"].index(rank), degrees)
    offset, local = [], []
    for size, axes in zip(shape, layout["tensor_map"], strict=True):
        index, count = 0, 1
        for axis in axes if isinstance(axes, list) else [axes]:
            if axis >= 0:  # -1: not cut
                index = index * degrees[-1 - axis] + int(coordinates[-1 - axis])
                count *= degrees[-1 - axis]
        offset.append(index * (size // count))
        local.append(size // count)
    return Block(offset=tuple(offset), shape=tuple(local))


def _joined(name: str, shape: Shape, parts: Mapping[Block, TensorFile]) -> LazyTensor:
    """A tensor put together from its blocks when it is read."""
    first = next(iter(parts.values()))
    for block, file in parts.items():
        held = (file.shape(name), file.dtype(name).name) if name in file.names else "missing"
        if held != (block.shape, first.dtype(name).name):
            raise ConversionError(f"{file.path}: '{name}' is {held}, by the layout in {METADATA} {block.shape}.")
    if fault := fault_of_blocks(list(parts), shape):
        raise ConversionError(f"{first.path.parent / METADATA}: '{name}': {fault}. Copy the files of all ranks.")

    def read() -> np.ndarray:
        if len(parts) == 1:
            return first.array(name)
        tensor = np.empty(shape, first.dtype(name))
        for block, file in parts.items():
            tensor[block.place] = file.array(name)
        return tensor

    return LazyTensor(shape=shape, dtype=first.dtype(name), read=read)


def write_iteration(
    folder: Path, step: int, batch_size: int, tensors: Mapping[str, LazyTensor], max_file_bytes: int
) -> list[str]:
    """Write weights as one process would have them, and say that they are the newest; names of what was written.

    Args:
        step: of the training; the iteration's number.
        batch_size: sequences a step.
        max_file_bytes: where another file is begun.
    """
    iteration = folder / f"iteration_{step:08d}"
    iteration.mkdir()
    groups = list(batches(tensors, max_file_bytes))
    files = {f"model-{number:07d}-{len(groups):07d}.safetensors": group for number, group in enumerate(groups)}
    for name, group in files.items():
        write_tensors(iteration / name, group)
    write_text_safely(iteration / METADATA, json.dumps(_metadata(files), indent=4))
    common = {"epoch_num": 0, "step_num": step, "global_step": step, "loss_scale": None}
    common |= {"global_batch_size": batch_size, "ckpt_status": None}
    write_text_safely(iteration / COMMON, json.dumps(common, indent=4))
    write_text_safely(folder / TRACKER, str(step))
    return [TRACKER, *(f"{iteration.name}/{name}" for name in (COMMON, METADATA, *files))]


def _metadata(files: Mapping[str, Mapping[str, LazyTensor]]) -> dict[str, Any]:
    """metadata.json of tensors that rank 0 holds whole; the layout's keys must stand in this order."""
    tensors = {name: tensor for group in files.values() for name, tensor in group.items()}
    return {
        "state_dict_metadata": {name: _entry(tensor) for name, tensor in tensors.items()},
        "storage_data": {
            str((name, (0,))): [{"file_name": file, "storage_rank": 0, "rank_group": [0]}]
            for file, group in files.items()
            for name in group
        },
    }


def _entry(tensor: LazyTensor) -> dict[str, Any]:
    dims = len(tensor.shape)
    return {
        "properties": {
            "dtype": DTYPE_NAMES[tensor.dtype.name],
            "replica_id": [0],
            "allow_shape_mismatch": False,
            "allow_to_save": True,
        },
        "global_shape": tensor.shape,
        "axis_fragmentations": [1] * dims,
        "layout": {
            "device_matrix": [1],
            "tensor_map": [-1] * dims,
            "interleaved_parallel": False,
            "alias_name": ["dp"],
            "rank_list": [0],
        },
        "chunk": [{"global_offset": [0], "local_shape": tensor.shape}],
    }
