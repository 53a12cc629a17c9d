"""From a recipe's `data` section to a tokenizer and two token streams: made once in the run folder, then reused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator

from mindmodel.data.sources import Document, documents
from mindmodel.data.split import Split, split_documents, text_hash
from mindmodel.data.tokenizer import TOKENIZER_JSON, Tokenizer, pieces, train_tokenizer
from mindmodel.data.tokens import TokenFile, TokenWriter, shard_paths
from mindmodel.errors import DataError
from mindmodel.files import read_json, sha256_of, write_folder_safely, write_text_safely
from mindmodel.recipe.schema import DataSection

Say = Callable[[str], None]

RECORD = "corpus.json"
RECORD_MAX_BYTES = 1 << 20
SHARD_FILES = ("train.bin", "train.idx", "heldout.bin", "heldout.idx")
TRAINING_SAMPLE_BYTES = 20_000_000
CHUNK_CHARS = 1 << 20
NO_HELDOUT = Path("data", "no_heldout")
"""In the run folder: prefix of an empty shard, beside shards of `data.path` of which nothing is held out."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What a run trains on."""

    tokenizer: Tokenizer
    train: TokenFile
    heldout: TokenFile


def prepare(data: DataSection, run_folder: Path, say: Say) -> Corpus:
    """Open a run's corpus; make it first if it is not there.

    `data.source` becomes `<run_folder>/tokenizer/`, `data/train.bin .idx`, `data/heldout.bin .idx` and
    `data/corpus.json`, which says what they were made from. `data/` appears only when it is whole. Each document ends
    with the end-of-document token. A trained tokenizer has seen training documents only.

    `data.path` is a folder with `train.bin .idx`, `heldout.bin .idx` unless nothing is held out, and `tokenizer/`
    unless `data.tokenizer` names another; its tokenizer is copied into the run folder.

    Args:
        data: the recipe's section.
        run_folder: the run's folder. One process at a time may prepare it.
        say: called with short texts on the progress.

    Raises:
        DataError: if the text, the tokenizer or the shards cannot be used, or the run folder holds a corpus that is
            damaged or was made from other settings.
    """
    if data.path is not None:
        corpus = _open_shards(data, Path(data.path), lambda: _nothing_heldout(run_folder), say)
        _install(corpus.tokenizer, run_folder)
        return corpus
    if not (run_folder / "data").exists():
        _build(data, run_folder, say)
        return _made(run_folder)
    return reopen(data, run_folder, say)


def reopen(data: DataSection, run_folder: Path, say: Say) -> Corpus:
    """The corpus that a run trains on, as it was made; nothing is written.

    Args:
        data, run_folder, say: as prepare's. Shards of `data.path` have no record: of them the tokenizer is compared.

    Raises:
        DataError: if it is gone, damaged, or was made from other settings.
    """
    if data.path is None:
        _verify(data, run_folder, say)
        return _made(run_folder)
    corpus = _open_shards(data, Path(data.path), lambda: run_folder / NO_HELDOUT, say)
    _refuse_other_tokenizer(corpus.tokenizer, run_folder)
    return corpus


def _made(run_folder: Path) -> Corpus:
    return Corpus(
        tokenizer=Tokenizer.load(run_folder / "tokenizer"),
        train=TokenFile(run_folder / "data" / "train"),
        heldout=TokenFile(run_folder / "data" / "heldout"),
    )


def _open_shards(data: DataSection, folder: Path, nothing_heldout: Callable[[], Path], say: Say) -> Corpus:
    """Shards that others have made; `nothing_heldout` gives the prefix of an empty one, for held-out documents."""
    train = TokenFile(folder / "train")
    tokenizer = Tokenizer.load(folder / "tokenizer" if data.tokenizer == "train" else data.tokenizer)
    heldout_prefix = folder / "heldout"
    if not any(path.exists() for path in shard_paths(heldout_prefix)):
        heldout_prefix = nothing_heldout()
    heldout = TokenFile(heldout_prefix)
    for tokens, prefix in ((train, folder / "train"), (heldout, heldout_prefix)):
        say(f"checking token ids: {tokens.num_tokens:,} tokens")
        if (largest := tokens.max_token()) >= tokenizer.vocab_size:
            raise DataError(
                f"{prefix}.bin: holds token {largest}; the tokenizer has {tokenizer.vocab_size}. "
                "Name the tokenizer that the shards were made with as data.tokenizer."
            )
    return Corpus(tokenizer=tokenizer, train=train, heldout=heldout)


def _nothing_heldout(run_folder: Path) -> Path:
    """Prefix of a shard without tokens, which is written."""
    prefix = run_folder / NO_HELDOUT
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with TokenWriter(prefix, vocab_size=1):
        pass
    return prefix


def _build(data: DataSection, run_folder: Path, say: Say) -> None:
    split, text_bytes = _survey(data, say)
    tokenizer = _tokenizer(data, split, text_bytes, say)
    with write_folder_safely(run_folder / "data") as folder:
        sides = _write_shards(data, split, tokenizer, folder, say)
        _install(tokenizer, run_folder)
        record = {
            "made_from": _made_from(data),
            **sides,
            "tokenizer_json": _facts(run_folder / "tokenizer" / TOKENIZER_JSON),
            "shards": {name: _facts(folder / name) for name in SHARD_FILES},
        }
        write_text_safely(folder / RECORD, json.dumps(record, indent=2) + "\n")


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _made_from(data: DataSection) -> dict[str, Any]:
    """The settings that shape a corpus, as they come back from JSON."""
    trained = data.tokenizer == "train"
    return {
        "source": list(data.source or ()),
        "tokenizer": data.tokenizer,
        "tokenizer_vocab_size": data.tokenizer_vocab_size if trained else None,
        "heldout": data.heldout,
    }


def _survey(data: DataSection, say: Say) -> tuple[Split, int]:
    """How to split the documents, and the bytes of their text."""
    text_bytes = 0

    def hashes() -> Iterator[int]:
        nonlocal text_bytes
        for document in _read(data, "reading text", say):
            text_bytes += len(document.text.encode("utf-8"))
            yield text_hash(document.text)

    return split_documents(hashes(), data.heldout), text_bytes


def _read(data: DataSection, doing: str, say: Say) -> Iterator[Document]:
    """The documents, with a word on the progress at the start and after each megabyte."""
    num_chars = said = 0
    say(doing)
    for number, document in enumerate(documents(data.source or ()), start=1):
        yield document
        num_chars += len(document.text)
        if num_chars - said >= 1_000_000:
            said = num_chars
            say(f"{doing}: {number:,} documents, {num_chars / 1e6:.0f} MB")


def _tokenizer(data: DataSection, split: Split, text_bytes: int, say: Say) -> Tokenizer:
    if data.tokenizer != "train":
        return Tokenizer.load(data.tokenizer)
    read = _read(data, "training the tokenizer", say)
    texts = (document.text for document in read if not split.is_heldout(document.text))
    return train_tokenizer(_sample(texts, TRAINING_SAMPLE_BYTES / text_bytes), data.tokenizer_vocab_size)


def _sample(texts: Iterable[str], share: float) -> Iterator[str]:
    """An even sample of texts, the long ones in pieces; all of them if the share is 1 or more."""
    seen = kept = 0
    for text in texts:
        for piece in pieces(text):
            seen += len(piece)
            if kept < seen * share:
                kept += len(piece)
                yield piece


def _write_shards(
    data: DataSection, split: Split, tokenizer: Tokenizer, folder: Path, say: Say
) -> dict[str, dict[str, int]]:
    """Write both shards; gives documents, tokens and bytes of text of each."""
    text_bytes = {"train": 0, "heldout": 0}
    with (
        TokenWriter(folder / "train", tokenizer.vocab_size) as train,
        TokenWriter(folder / "heldout", tokenizer.vocab_size) as heldout,
    ):
        writers = {"train": train, "heldout": heldout}
        for chunk in _chunks(_read(data, "writing token shards", say)):
            for text, ids in zip(chunk, tokenizer.encode_batch(chunk)):
                side = "heldout" if split.is_heldout(text) else "train"
                writers[side].add(ids + [tokenizer.eod_id])
                text_bytes[side] += len(text.encode("utf-8"))
    shards = {side: TokenFile(folder / side) for side in writers}
    return {
        side: {"documents": shard.num_documents, "tokens": shard.num_tokens, "bytes": text_bytes[side]}
        for side, shard in shards.items()
    }


def _chunks(read: Iterable[Document]) -> Iterator[list[str]]:
    """Texts in lists of about `CHUNK_CHARS` characters, or one text that is longer."""
    chunk: list[str] = []
    num_chars = 0
    for document in read:
        chunk.append(document.text)
        num_chars += len(document.text)
        if num_chars >= CHUNK_CHARS:
            yield chunk
            chunk, num_chars = [], 0
    if chunk:
        yield chunk


def _install(tokenizer: Tokenizer, run_folder: Path) -> None:
    """Put the tokenizer into the run folder, whole or not at all, and never in the place of another."""
    if (run_folder / "tokenizer").exists():
        _refuse_other_tokenizer(tokenizer, run_folder)
        return
    with write_folder_safely(run_folder / "tokenizer") as folder:
        tokenizer.copy_to(folder)


def _refuse_other_tokenizer(tokenizer: Tokenizer, run_folder: Path) -> None:
    target = run_folder / "tokenizer"
    if Tokenizer.load(target).sha256 != tokenizer.sha256:
        raise DataError(
            f"{target}: holds another tokenizer than the recipe's data give. Use another runtime.output, or "
            "delete that folder and it is made again."
        )


def _verify(data: DataSection, run_folder: Path, say: Say) -> None:
    """Compare a corpus with its record, and the record with the settings asked for."""
    path = run_folder / "data" / RECORD
    remake = f"Delete {run_folder / 'data'} and {run_folder / 'tokenizer'} and they are made again."
    if not path.is_file():
        raise DataError(f"{path}: is missing, so the folder holds no whole corpus. {remake}")
    record = read_json(path, DataError, RECORD_MAX_BYTES)
    made_from, shards = record.get("made_from"), record.get("shards")
    if not isinstance(made_from, dict) or not isinstance(shards, dict):
        raise DataError(f"{path}: is damaged: made_from or shards is missing. {remake}")
    for key, asked in _made_from(data).items():
        if made_from.get(key) != asked:
            raise DataError(
                f"{path}: the corpus was made with data.{key} {made_from.get(key)!r}; the recipe has {asked!r}. "
                f"Use another runtime.output, or start anew. {remake}"
            )
    recorded = {run_folder / "data" / name: shards.get(name) for name in SHARD_FILES}
    recorded[run_folder / "tokenizer" / TOKENIZER_JSON] = record.get("tokenizer_json")
    for file, facts in recorded.items():
        say(f"verifying {file.name}")
        if not file.is_file() or _facts(file) != facts:
            raise DataError(f"{file}: is missing or not as it was made, by size or checksum. {remake}")
