"""A Hugging Face folder as files: its configuration, its shards of tensors and their index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Mapping

from mindmodel.errors import ConversionError
from mindmodel.files import file_inside, read_json, write_text_safely
from mindmodel.models.family import Family, family_of
from mindmodel.recipe.schema import ModelSection
from mindmodel.tensor_file import LazyTensor, TensorFile, batches, write_tensors

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
SINGLE = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"
SHARD_MAX_BYTES = 5 * 10**9


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a Hugging Face folder.

    Raises:
        ConversionError: if the folder or the file is missing, or the file is damaged.
    """
    if not folder.is_dir():
        raise ConversionError(f"{folder}: there is no such folder. Give a Hugging Face folder with {CONFIG}.")
    if not (folder / CONFIG).is_file():
        raise ConversionError(f"{folder}: holds no {CONFIG}, so it is no Hugging Face folder.")
    return read_json(folder / CONFIG, ConversionError)


def read_model(folder: Path) -> tuple[dict[str, Any], Family, ModelSection]:
    """The config.json of a Hugging Face folder, the family that it is of, and the model that it describes.

    Raises:
        ConversionError: as read_config; or if the model is none that the decoder computes.
    """
    config, where = read_config(folder), folder / CONFIG
    family = family_of(config, where)
    return config, family, family.read_config(config, where)


def read_tensors(folder: Path) -> dict[str, LazyTensor]:
    """All tensors of a Hugging Face folder by name; headers are checked, numbers are read later.

    Source: the order of `transformers.PreTrainedModel.from_pretrained`: one file, else the index of shards.

    Raises:
        ConversionError: if there are no safetensors, or a file is missing, damaged, or not what the index says.
    """
    if (folder / SINGLE).is_file():
        file = TensorFile(folder / SINGLE, ConversionError)
        return {name: file.lazy(name) for name in file.names}
    if (folder / SHARD_INDEX).is_file():
        return _read_shards(folder)
    if list(folder.glob("*.bin")) or list(folder.glob("*.pt*")):
        raise ConversionError(
            f"{folder}: holds only pickled weights, which can run code when they are opened and are not read here. "
            "Save the model as safetensors: model.save_pretrained(folder, safe_serialization=True)."
        )
    raise ConversionError(f"{folder}: holds neither {SINGLE} nor {SHARD_INDEX}.")


def _read_shards(folder: Path) -> dict[str, LazyTensor]:
    index = folder / SHARD_INDEX
    weight_map = read_json(index, ConversionError).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ConversionError(f"{index}: weight_map must be a mapping of tensor names to file names.")
    tensors, faults = {}, []
    for shard in sorted(set(weight_map.values())):
        file = TensorFile(file_inside(folder, shard, ConversionError), ConversionError)
        announced = {name for name, where in weight_map.items() if where == shard}
        faults += [f"{name} is not in {shard}" for name in announced - set(file.names)]
        faults += [f"{name} in {shard} is not in the index" for name in set(file.names) - announced]
        tensors.update({name: file.lazy(name) for name in file.names})
    if faults:
        raise ConversionError("\n  ".join([f"{index}: the shards do not hold what it says:", *sorted(faults)]))
    return tensors


def write_shards(folder: Path, tensors: Mapping[str, LazyTensor], max_bytes: int = SHARD_MAX_BYTES) -> list[str]:
    """Write tensors as one file, or as shards with an index when they are more than `max_bytes`.

    Returns:
        Names of the files.

    Source: file names and index as `transformers.PreTrainedModel.save_pretrained` writes them.
    """
    groups = list(batches(tensors, max_bytes))
    if len(groups) == 1:
        write_tensors(folder / SINGLE, tensors, {"format": "pt"})
        return [SINGLE]
    names = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    for name, group in zip(names, groups):
        write_tensors(folder / name, group, {"format": "pt"})
    write_json(
        folder / SHARD_INDEX,
        {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
            "weight_map": {tensor: name for name, group in zip(names, groups) for tensor in group},
        },
    )
    return [*names, SHARD_INDEX]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file as transformers formats it."""
    write_text_safely(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
