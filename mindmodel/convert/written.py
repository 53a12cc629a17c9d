"""What all conversions do when they write: a free target, another dtype, files copied, a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Mapping

import numpy as np

from mindmodel.errors import ConversionError
from mindmodel.files import copy_file
from mindmodel.tensor_file import DTYPE_OF_NAME, LazyTensor


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a conversion wrote: the folder, the files in it, and the size and dtypes of the tensors."""

    path: Path
    files: tuple[str, ...]
    num_tensors: int
    num_bytes: int
    dtype: str


def written(path: Path, files: Iterable[str], tensors: Mapping[str, LazyTensor]) -> Written:
    """The report of a conversion."""
    return Written(
        path=path,
        files=tuple(files),
        num_tensors=len(tensors),
        num_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        dtype=", ".join(sorted({tensor.dtype.name for tensor in tensors.values()})),
    )


def check_free(target: Path) -> None:
    """The target of a conversion must be new or empty.

    Raises:
        ConversionError: if it is not.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ConversionError(f"{target}: exists and is not an empty folder. Choose another name, or remove it.")


def cast(name: str, tensor: LazyTensor, dtype: str) -> LazyTensor:
    """The tensor in another dtype; the same one when it has it already.

    Raises:
        ConversionError: when it is read, if a number is beyond the dtype's range.
    """
    if tensor.dtype.name == dtype:
        return tensor
    target = DTYPE_OF_NAME[dtype]
    return LazyTensor(shape=tensor.shape, dtype=target, read=lambda: _rounded(name, tensor.read(), target))


def _rounded(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        rounded = array.astype(dtype)
    beyond = int(np.count_nonzero(np.isinf(rounded) & np.isfinite(array)))
    if beyond:
        raise ConversionError(f"{name}: {beyond} weights are beyond the range of {dtype.name}. Use float32.")
    return rounded


def copy_files(source: Path, target: Path, names: Iterable[str]) -> list[str]:
    """Copy the files that there are, unchanged; their names."""
    present = [name for name in names if (source / name).is_file()]
    for name in present:
        target.mkdir(exist_ok=True)
        copy_file(source / name, target / name)
    return present
