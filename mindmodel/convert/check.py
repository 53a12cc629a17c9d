"""Whether a run and a Hugging Face folder are the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mindmodel.checkpoint.compare import apart
from mindmodel.convert.export import Export, open_export
from mindmodel.convert.folder import CONFIG, read_model, read_tensors
from mindmodel.models.family import architecture_differences
from mindmodel.models.weight_rules import WEIGHT_DTYPES, names_without_use
from mindmodel.tensor_file import LazyTensor


def differences(path: Path, folder: Path) -> list[str]:
    """What differs between a run, converted, and a Hugging Face folder: a line each; empty for the same model.

    Tensors are rounded to the folder's dtypes and compared bit by bit. Of config.json the entries that the decoder
    computes with are compared.

    Args:
        path: a run or one of its `step_N` folders.
        folder: a Hugging Face folder.

    Raises:
        CheckpointError, ConversionError: if one of the two cannot be read.
    """
    export = open_export(path)
    found = _config_differences(export, folder)
    theirs = read_tensors(folder)
    found += [f"{name}: not in {folder}" for name in export.tensors if name not in theirs]
    without_use = names_without_use(export.family.rules, export.model)
    found += [f"{name}: only in {folder}" for name in theirs if name not in {*export.tensors, *without_use}]
    for name, tensor in export.tensors.items():
        if name in theirs:
            found += _tensor_differences(name, tensor, theirs[name])
    return found


def _config_differences(export: Export, folder: Path) -> list[str]:
    _, _, theirs = read_model(folder)
    found = architecture_differences(export.model, theirs)
    return [f"{folder / CONFIG}: {name} is {given}, the run's {ours}" for name, ours, given in found]


def _tensor_differences(name: str, ours: LazyTensor, theirs: LazyTensor) -> list[str]:
    if theirs.dtype.name not in WEIGHT_DTYPES:
        return [f"{name}: dtype {theirs.dtype.name}, weights are {', '.join(WEIGHT_DTYPES)}"]
    if ours.shape != theirs.shape:
        return [f"{name}: shape {list(theirs.shape)}, the run's {list(ours.shape)}"]
    with np.errstate(over="ignore"):
        expected = ours.read().astype(theirs.dtype)
    count, distance = apart(expected, theirs.read())
    return [f"{name}: {count} of {expected.size} numbers differ, by up to {distance:.3g}"] if count else []
