"""Text to token ids and back: a Hugging Face tokenizer, loaded from its files or trained here."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Iterable, Iterator, Sequence, Union

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from mindmodel.errors import DataError
from mindmodel.files import read_bytes, read_json, sync_file

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
TOKENIZER_FILES = (
    TOKENIZER_JSON,
    TOKENIZER_CONFIG,
    SPECIAL_TOKENS_MAP,
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "added_tokens.json",
    "chat_template.jinja",
)
END_OF_DOCUMENT = "<|endoftext|>"
EOD_TOKENS = (END_OF_DOCUMENT, "</s>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>")
MAX_FILE_BYTES = 1 << 27  # the largest vocabularies in use, of 256 thousand tokens, take 35 MB
PIECE_CHARS = 1 << 20  # the library needs about 150 bytes for each character it tokenizes at once

_LINE_END = re.compile(r"(?<=\S)\n(?=\S)")


class Tokenizer:
    """A tokenizer and the files it came from. Made by `Tokenizer.load` and `train_tokenizer`."""

    def __init__(self, files: dict[str, bytes], config: dict[str, Any], origin: str) -> None:
        """Open a tokenizer.

        Args:
            files: content of the tokenizer's files by name; `tokenizer.json` is among them.
            config: what the tokenizer_config.json holds; empty if there is none.
            origin: where they are from, for messages.

        Raises:
            DataError: if they are not valid, or name no end-of-document token.
        """
        self._files = files
        self._inner = _parse(files[TOKENIZER_JSON], origin)
        self._vocab = self._inner.get_vocab(with_added_tokens=True)
        self._eod = _eod_token(self._vocab, config, origin)

    @classmethod
    def load(cls, path: Union[str, Path]) -> Tokenizer:
        """Open a `tokenizer.json`, or the folder that holds it; the files of `TOKENIZER_FILES` beside it belong to it.

        Raises:
            DataError: if a file is missing, not valid or oversized, or there is no end-of-document token.
        """
        path = Path(path)
        file = path / TOKENIZER_JSON if path.is_dir() else path
        if not file.is_file():
            raise DataError(
                f"{path}: is no tokenizer.json and no folder that holds one. A folder with another kind of tokenizer "
                "gets one by transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)."
            )
        files, config = {TOKENIZER_JSON: _read(file)}, {}
        if file.name == TOKENIZER_JSON:
            others = [name for name in TOKENIZER_FILES[1:] if (file.parent / name).is_file()]
            files.update({name: _read(file.parent / name) for name in others})
        if TOKENIZER_CONFIG in files:
            config = read_json(file.parent / TOKENIZER_CONFIG, DataError)
        return cls(files, config, str(path))

    @property
    def vocab_size(self) -> int:
        """Largest id + 1, added tokens included."""
        return max(self._vocab.values()) + 1

    @property
    def eod_id(self) -> int:
        """Id of the token that ends a document."""
        return self._vocab[self._eod]

    @property
    def sha256(self) -> str:
        """SHA-256 of the tokenizer.json, which tells tokenizers apart."""
        return hashlib.sha256(self._files[TOKENIZER_JSON]).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; see `encode_batch`."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of several texts, tokenized on all cores.

        No special token is added; one that is written out in a text becomes its id, as in Hugging Face. A text of more
        than `PIECE_CHARS` characters is tokenized in pieces, cut at line ends.
        """
        parts = [list(pieces(text)) for text in texts]
        flat = [piece for pieces_of_text in parts for piece in pieces_of_text]
        encodings = iter(self._inner.encode_batch_fast(flat, add_special_tokens=False))
        return [[token for _ in pieces_of_text for token in next(encodings).ids] for pieces_of_text in parts]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, special tokens written out."""
        return self._inner.decode([int(token) for token in ids], skip_special_tokens=False)

    def copy_to(self, folder: Path) -> None:
        """Write the tokenizer's files into a folder, byte for byte as they were loaded.

        Where there was only a `tokenizer.json`, a tokenizer_config.json and a special_tokens_map.json that name the
        end-of-document token are added, so that transformers.AutoTokenizer opens the folder. Who needs the folder to be
        whole or absent gives a temporary one.
        """
        folder.mkdir(parents=True, exist_ok=True)
        files = dict(self._files)
        if TOKENIZER_CONFIG not in files:
            files = {**_config_files({"eos_token": self._eod}), **files}
        for name, content in files.items():
            with open(folder / name, "wb") as file:
                file.write(content)
                sync_file(file)


def pieces(text: str) -> Iterator[str]:
    """Cut a long text after line ends into parts of at least `PIECE_CHARS` characters; a shorter one stays whole.

    A cut has something visible right before and after the line end: no byte-level tokenizer joins a token across it.
    """
    start = 0
    while len(text) - start > PIECE_CHARS:
        line_end = _LINE_END.search(text, start + PIECE_CHARS)
        if line_end is None:
            break
        yield text[start:line_end.end()]
        start = line_end.end()
    yield text[start:]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer: any text comes back as it was, and equal texts give equal files.

    A token never spans words. Each digit is a token, so that equal numbers are always cut alike, and the line end
    with all of the indentation that follows but its last space is one, which suits source code.

    Args:
        texts: what to learn from; some 20 MB are enough.
        vocab_size: tokens, `<|endoftext|>` (id 0) and the 256 bytes included; fewer if the texts hold no more.

    Source:
        Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2 (byte-level BPE).
    """
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator((piece for text in texts for piece in pieces(text)), trainer)
    special_tokens = {"bos_token": END_OF_DOCUMENT, "eos_token": END_OF_DOCUMENT}
    files = {TOKENIZER_JSON: inner.to_str(pretty=True).encode("utf-8"), **_config_files(special_tokens)}
    return Tokenizer(files, special_tokens, "the trained tokenizer")


def _read(path: Path) -> bytes:
    return read_bytes(path, DataError, MAX_FILE_BYTES)


def _parse(content: bytes, origin: str) -> tokenizers.Tokenizer:
    try:
        inner = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"{origin}: the tokenizer.json is not valid ({error}).") from error
    inner.no_truncation()  # a file may carry both, and they would cut or fill documents without a word
    inner.no_padding()
    return inner


def _eod_token(vocab: dict[str, int], config: dict[str, Any], origin: str) -> str:
    """The configured end-of-sequence token, else the first well-known one of the vocabulary."""
    configured = config.get("eos_token")
    token = configured.get("content") if isinstance(configured, dict) else configured
    if token is None:
        token = next((known for known in EOD_TOKENS if known in vocab), None)
    if token is None:
        raise DataError(
            f'{origin}: no end-of-document token. Name one as "eos_token" in tokenizer_config.json; '
            f"without that, one of {', '.join(EOD_TOKENS)} is looked for."
        )
    if not isinstance(token, str) or token not in vocab:
        raise DataError(f"{origin}: the eos_token of tokenizer_config.json, {token!r}, is not in tokenizer.json.")
    return token


def _config_files(special_tokens: dict[str, str]) -> dict[str, bytes]:
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **special_tokens,
    }
    return {TOKENIZER_CONFIG: _json_bytes(config), SPECIAL_TOKENS_MAP: _json_bytes(special_tokens)}


def _json_bytes(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode("utf-8")
