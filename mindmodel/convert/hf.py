"""Runs to Hugging Face folders and back. Tensors stream through: one at a time is in memory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Mapping, Optional

import numpy as np

from mindmodel import __version__
from mindmodel.checkpoint.run_folder import RunFolder
from mindmodel.checkpoint.save import save_checkpoint
from mindmodel.checkpoint.tensor_file import DTYPE_OF_NAME, LazyTensor
from mindmodel.convert.export import open_export
from mindmodel.convert.folder import (
    CONFIG,
    GENERATION_CONFIG,
    SHARD_MAX_BYTES,
    read_config,
    read_tensors,
    write_json,
    write_shards,
)
from mindmodel.convert.rules import to_ours
from mindmodel.data.tokenizer import TOKENIZER_FILES
from mindmodel.errors import ConversionError
from mindmodel.files import copy_file, write_folder_safely, write_text_safely
from mindmodel.models.family import Family, family_of, parameter_shapes
from mindmodel.recipe.dump import recipe_to_dict, recipe_to_yaml
from mindmodel.recipe.rules import faults_of
from mindmodel.recipe.schema import (
    CheckpointSection,
    DataSection,
    LogSection,
    OptimSection,
    ParallelSection,
    Recipe,
    RuntimeSection,
    TrainSection,
)

IMPORTED_SEQ_LEN_MAX = 1024


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a conversion wrote: the folder, the files in it, and the size and dtypes of the tensors."""

    path: Path
    files: tuple[str, ...]
    num_tensors: int
    num_bytes: int
    dtype: str


def to_hf(path: Path, out: Path, dtype: Optional[str] = None, max_shard_bytes: int = SHARD_MAX_BYTES) -> Written:
    """Write a run's weights as a Hugging Face folder.

    Args:
        path: a run (its newest whole checkpoint) or one of its `step_N` folders.
        out: a new or empty folder.
        dtype: float32, bfloat16 or float16; default as stored.
        max_shard_bytes: a larger model is written as several files.

    Raises:
        CheckpointError: if there is no whole checkpoint.
        ConversionError: if the weights are not those of the run's model or do not fit the dtype, or `out` is taken.
    """
    out = Path(out)
    _check_free(out)
    export = open_export(Path(path))
    tensors = {name: _cast(name, tensor, dtype or tensor.dtype.name) for name, tensor in export.tensors.items()}
    with write_folder_safely(out) as folder:
        files = write_shards(folder, tensors, max_shard_bytes)
        files += _write_jsons(
            folder,
            {
                CONFIG: export.config(next(iter(tensors.values())).dtype.name),
                GENERATION_CONFIG: export.generation_config(),
            },
        )
        files += _copy_files(export.run.tokenizer, folder, TOKENIZER_FILES)
    return _written(out, files, tensors)


def from_hf(folder: Path, run: Path) -> Written:
    """Make a run of a Hugging Face folder: recipe, tokenizer, and the checkpoint `step_0` with the weights as they are.

    Args:
        folder: with config.json and safetensors.
        run: a new or empty folder.

    Raises:
        CheckpointError: if `run` cannot be written.
        ConversionError: if the folder is incomplete or damaged, its model is beyond what the decoder can do, or `run`
            is taken.
    """
    folder, run = Path(folder), Path(run)
    _check_free(run)
    config = read_config(folder)
    family = family_of(config, folder / CONFIG)
    recipe = _imported_recipe(config, family, folder / CONFIG, run)
    weights = to_ours(family.rules, recipe.model, parameter_shapes(recipe.model), read_tensors(folder), folder)
    with write_folder_safely(run) as temporary:
        files = _fill_run(RunFolder(temporary), recipe, weights, folder)
    return _written(run, files, weights)


def _check_free(target: Path) -> None:
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ConversionError(f"{target}: exists and is not an empty folder. Choose another name, or remove it.")


def _cast(name: str, tensor: LazyTensor, dtype: str) -> LazyTensor:
    """The tensor in another dtype; the same one when it has it already."""
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


def _write_jsons(folder: Path, contents: Mapping[str, Optional[Mapping[str, Any]]]) -> list[str]:
    """Write those that there are."""
    present = {name: content for name, content in contents.items() if content is not None}
    for name, content in present.items():
        write_json(folder / name, content)
    return list(present)


def _copy_files(source: Path, target: Path, names: Iterable[str]) -> list[str]:
    """Copy the files that there are, unchanged; their names."""
    present = [name for name in names if (source / name).is_file()]
    for name in present:
        target.mkdir(exist_ok=True)
        copy_file(source / name, target / name)
    return present


def _imported_recipe(config: Mapping[str, Any], family: Family, where: Path, run: Path) -> Recipe:
    """A recipe that names the imported model; its training keys are only there to be overridden."""
    positions = config.get("max_position_embeddings", IMPORTED_SEQ_LEN_MAX)
    if type(positions) is not int or positions < 2:
        raise ConversionError(f"{where}, max_position_embeddings: {positions!r} is not a number of tokens above 1.")
    seq_len = min(positions, IMPORTED_SEQ_LEN_MAX)
    recipe = Recipe(
        name=re.sub(r"[^\w+-]", "_", run.resolve().name),
        model=family.read_config(config, where),
        data=DataSection(tokenizer=str(RunFolder(run).tokenizer), seq_len=seq_len),
        parallel=ParallelSection(),
        train=TrainSection(steps=1, tokens_per_step=seq_len),
        optim=OptimSection(),
        checkpoint=CheckpointSection(),
        runtime=RuntimeSection(output=str(run)),
        log=LogSection(),
    )
    faults = [f"{where}, {fault.key}: {fault.text}" for fault in faults_of(recipe) if fault.key.startswith("model.")]
    if faults:
        raise ConversionError("\n".join(faults))
    return recipe


def _fill_run(run: RunFolder, recipe: Recipe, weights: Mapping[str, LazyTensor], source: Path) -> list[str]:
    """Write a whole run into an empty folder; the names of its parts."""
    checkpoint = save_checkpoint(
        run.checkpoints,
        step=0,
        samples=0,
        tokens=0,
        weights=weights,
        optimizer={},
        recipe=recipe_to_dict(recipe),
        versions={"mindmodel": __version__},
        random={},
        layout={"dp": 1, "tp": 1, "pp": 1, "cp": 1},
        keep=1,
        keep_every=0,
    )
    _copy_files(source, run.huggingface, (CONFIG, GENERATION_CONFIG))
    _copy_files(source, run.tokenizer, TOKENIZER_FILES)
    write_text_safely(run.recipe_file, recipe_to_yaml(recipe))
    parts = [path for path in run.path.iterdir() if path != run.checkpoints]
    return sorted(str(path.relative_to(run.path)) for path in (*parts, checkpoint))


def _written(path: Path, files: Iterable[str], tensors: Mapping[str, LazyTensor]) -> Written:
    return Written(
        path=path,
        files=tuple(files),
        num_tensors=len(tensors),
        num_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        dtype=", ".join(sorted({tensor.dtype.name for tensor in tensors.values()})),
    )
