"""A run in Hugging Face's terms: the tensors under their names, the configuration, the special tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Optional

from mindmodel.checkpoint.load import Checkpoint
from mindmodel.checkpoint.run_folder import RunFolder, resolve_weights
from mindmodel.convert.folder import CONFIG, GENERATION_CONFIG, write_json
from mindmodel.convert.written import Written, cast, check_free, copy_files, written
from mindmodel.data.tokenizer import TOKENIZER_CONFIG, TOKENIZER_FILES, Tokenizer
from mindmodel.errors import ConversionError
from mindmodel.files import read_json, write_folder_safely
from mindmodel.models.family import Family, find_family, parameter_shapes
from mindmodel.models.weight_rules import Rule, to_theirs
from mindmodel.recipe.load import load_run_recipe
from mindmodel.recipe.schema import ModelSection, Recipe
from mindmodel.tensor_file import LazyTensor

VOCABULARY_WEIGHTS = ("embedding.weight", "head.weight")

RulesOf = Callable[[Family], tuple[Rule, ...]]
"""Which of a family's rules name the tensors of a folder."""


def hf_rules(family: Family) -> tuple[Rule, ...]:
    """Those of Hugging Face's names."""
    return family.rules


@dataclass(frozen=True, kw_only=True)
class Export:
    """A run's weights and what belongs to them; numbers are read when a tensor is.

    Attributes:
        run, recipe: where the weights are from.
        family: of the model.
        model: the recipe's, with the exported vocabulary's size.
        step: of the checkpoint.
        tensors: by their names.
    """

    run: RunFolder
    recipe: Recipe
    family: Family
    model: ModelSection
    step: int
    tensors: dict[str, LazyTensor]

    def config(self, dtype: str) -> dict[str, Any]:
        """Entries of config.json; an imported model's own are kept.

        Source: transformers 4.57 writes `dtype`, earlier versions read `torch_dtype`. Both are written.
        """
        own = self.family.write_config(self.model)
        kept = _imported(self.run, CONFIG)
        if kept is None:
            kept = {"max_position_embeddings": self.recipe.data.seq_len, **self._special_tokens()}
        kept.pop("rope_parameters", None)
        return {**kept, **own, "dtype": dtype, "torch_dtype": dtype}

    def generation_config(self) -> Optional[dict[str, Any]]:
        """Entries of generation_config.json; None where an imported model came without one."""
        if _is_imported(self.run):
            return _imported(self.run, GENERATION_CONFIG)
        return {name: token for name, token in self._special_tokens().items() if token is not None}

    def _special_tokens(self) -> dict[str, Optional[int]]:
        """Ids of the tokens that begin and end a text; a null keeps transformers from taking its own."""
        tokenizer = Tokenizer.load(self.run.tokenizer)
        begin = read_json(self.run.tokenizer / TOKENIZER_CONFIG, ConversionError).get("bos_token")
        text = begin.get("content") if isinstance(begin, dict) else begin
        ids = tokenizer.encode(text) if text else []
        return {"bos_token_id": ids[0] if len(ids) == 1 else None, "eos_token_id": tokenizer.eod_id}


def export_run(
    path: Path,
    out: Path,
    dtype: Optional[str],
    rules_of: RulesOf,
    write: Callable[[Path, Export, dict[str, LazyTensor]], list[str]],
) -> Written:
    """Write a run's weights as a new folder, with config.json, generation_config.json and tokenizer beside them.

    Args:
        path: a run (its newest whole checkpoint) or one of its `step_N` folders.
        out: a new or empty folder.
        dtype: float32, bfloat16 or float16; None: as stored.
        write: writes the tensors into a folder; gives the names of the files.

    Raises:
        CheckpointError: if there is no whole checkpoint.
        ConversionError: if the weights are not those of the run's model or do not fit the dtype, or `out` is taken.
    """
    check_free(out)
    export = open_export(path, rules_of)
    tensors = {name: cast(name, tensor, dtype or tensor.dtype.name) for name, tensor in export.tensors.items()}
    config = export.config(next(iter(tensors.values())).dtype.name)
    with write_folder_safely(out) as folder:
        files = write(folder, export, tensors)
        for name, content in ((CONFIG, config), (GENERATION_CONFIG, export.generation_config())):
            if content is not None:
                write_json(folder / name, content)
                files.append(name)
        files += copy_files(export.run.tokenizer, folder, TOKENIZER_FILES)
    return written(out, files, tensors)


def open_export(path: Path, rules_of: RulesOf = hf_rules) -> Export:
    """A run, its newest whole checkpoint or the `step_N` folder that is asked for, in another library's terms.

    Raises:
        CheckpointError: if there is no whole checkpoint.
        ConversionError: if the weights are not those of the run's model, or no Hugging Face folder can be that model.
    """
    run, checkpoint = resolve_weights(path)
    recipe = load_run_recipe(run.recipe_file)
    family = find_family(recipe.model.family)
    if recipe.model.qk_norm != family.qk_norm:
        raise ConversionError(
            f"{run.recipe_file}, model.qk_norm: {recipe.model.qk_norm} is not what {family.architecture} computes. "
            "Only a run with the family's own qk_norm can be converted."
        )
    model = replace(recipe.model, vocab_size=_exported_vocab_size(run, recipe.model))
    weights = _cut_vocabulary(checkpoint, recipe.model, model)
    tensors = to_theirs(rules_of(family), model, parameter_shapes(model), weights, checkpoint.path)
    return Export(run=run, recipe=recipe, family=family, model=model, step=checkpoint.index.step, tensors=tensors)


def _is_imported(run: RunFolder) -> bool:
    return (run.huggingface / CONFIG).is_file()


def _imported(run: RunFolder, name: str) -> Optional[dict[str, Any]]:
    """A configuration file that an imported model came with; None when there is none."""
    path = run.huggingface / name
    return read_json(path, ConversionError) if path.is_file() else None


def _exported_vocab_size(run: RunFolder, model: ModelSection) -> int:
    """The tokenizer's size for weights trained here; imported ones keep theirs, whichever rows are unused."""
    assert model.vocab_size is not None
    if _is_imported(run):
        return model.vocab_size
    size = Tokenizer.load(run.tokenizer).vocab_size
    if size > model.vocab_size:
        raise ConversionError(
            f"{run.tokenizer}: has {size} tokens, more than the model's {model.vocab_size}. "
            "It is not the tokenizer of this run."
        )
    return size


def _cut_vocabulary(checkpoint: Checkpoint, padded: ModelSection, model: ModelSection) -> dict[str, LazyTensor]:
    """The weights without the rows beyond the exported vocabulary; misshapen ones are left as they are."""

    def cut(tensor: LazyTensor) -> LazyTensor:
        shape = (size, *tensor.shape[1:])
        return LazyTensor(shape=shape, dtype=tensor.dtype, read=lambda: tensor.read()[:size])

    assert model.vocab_size is not None
    size, weights = model.vocab_size, checkpoint.weights()
    tensors = {name: weights.lazy(name) for name in weights}
    for name in VOCABULARY_WEIGHTS:
        if name in tensors and tensors[name].shape[0] == padded.vocab_size:
            tensors[name] = cut(tensors[name])
    return tensors
