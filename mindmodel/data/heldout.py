"""Token streams to evaluate on: what a run holds out, or a text of the user's."""

from __future__ import annotations

from pathlib import Path

from mindmodel.data.sources import documents
from mindmodel.data.tokenizer import Tokenizer
from mindmodel.data.tokens import TokenFile, TokenWriter
from mindmodel.errors import DataError
from mindmodel.recipe.schema import DataSection


def heldout_tokens(data: DataSection, run_folder: Path) -> TokenFile:
    """The held-out stream of a run.

    Raises:
        DataError: if the run has none, as an imported model.
    """
    folder = Path(data.path) if data.path is not None else run_folder / "data"
    if not (folder / "heldout.idx").is_file():
        raise DataError(f"{run_folder}: this run has no held-out documents. Name a text: --text FILE.")
    return TokenFile(folder / "heldout")


def text_tokens(path: str, tokenizer: Tokenizer, folder: Path) -> TokenFile:
    """A text, or the documents of a JSONL file, as a token stream written into `folder`.

    Raises:
        DataError: if the file is missing, empty or not UTF-8.
    """
    prefix = folder / "text"
    with TokenWriter(prefix, tokenizer.vocab_size) as writer:
        for document in documents([path]):
            writer.add([*tokenizer.encode(document.text), tokenizer.eod_id])
    return TokenFile(prefix)
