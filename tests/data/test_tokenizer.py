"""A tokenizer gives back what it was given, opens in Hugging Face, and its files are checked."""

import json

import pytest

from mindmodel.data import tokenizer as module
from mindmodel.data.tokenizer import END_OF_DOCUMENT, Tokenizer, pieces, train_tokenizer
from mindmodel.errors import DataError

PYTHON = "".join(
    f"class C{i}:\n    def method(self, x):\n        if x == {i * 37}:\n            return self.name\n"
    for i in range(40)
)
HARD_TEXTS = [
    PYTHON,
    "",
    " ",
    "\n\n  \t\r\n x",
    "naïve Ünïcode \u3000 日本語 🙂🙃 \u0301",
    "12345.678e-9 ٣٤ ½",
    "a<|endoftext|>b",
    "nul \x00 and \x7f and \ufeff",
    "it's  We'LL 'quoted'",
]


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer([PYTHON], 400)


def write_tokenizer(folder, trained, **config):
    trained.copy_to(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_any_text_comes_back(trained, text):
    assert trained.decode(trained.encode(text)) == text


def test_every_byte_has_a_token_and_the_end_of_document_is_id_0(trained):
    assert train_tokenizer(["a"], 300).vocab_size == 257
    assert trained.eod_id == 0
    assert trained.encode(END_OF_DOCUMENT) == [0]


def test_an_indentation_is_one_token_and_a_digit_too(trained):
    tokens = [trained.decode([token]) for token in trained.encode("\n        if 120")]
    assert tokens == ["\n       ", " if", " ", "1", "2", "0"]


def test_two_trainings_give_the_same_files(tmp_path):
    for name in "ab":
        train_tokenizer([PYTHON, *HARD_TEXTS], 350).copy_to(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_batch_is_its_texts_one_by_one(trained):
    assert trained.encode_batch(HARD_TEXTS) == [trained.encode(text) for text in HARD_TEXTS]
    assert trained.encode_batch([]) == []


def test_a_long_text_in_pieces_gives_the_tokens_of_the_whole(trained, monkeypatch):
    texts = [PYTHON, "one line " * 50, "\n\n\n  " * 50, "a\nb\n\nc" * 50]
    whole = trained.encode_batch(texts)
    monkeypatch.setattr(module, "PIECE_CHARS", 20)
    assert len(list(pieces(PYTHON))) == 40
    assert "".join(pieces(PYTHON)) == PYTHON
    assert trained.encode_batch(texts) == whole


def test_the_folder_opens_in_hugging_face_with_the_same_ids(trained, tmp_path):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    trained.copy_to(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(theirs, PreTrainedTokenizerFast)
    assert (theirs.eos_token_id, theirs.bos_token_id) == (0, 0)
    assert len(theirs) == trained.vocab_size
    for text in HARD_TEXTS:
        assert theirs(text)["input_ids"] == trained.encode(text)
        assert theirs.decode(trained.encode(text)) == text


def test_a_folder_is_copied_byte_for_byte_and_nothing_else_of_it(trained, tmp_path):
    write_tokenizer(tmp_path / "from", trained, eos_token=END_OF_DOCUMENT, model_max_length=7)
    (tmp_path / "from" / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "from" / "model.safetensors").write_bytes(b"weights")
    loaded = Tokenizer.load(tmp_path / "from")
    loaded.copy_to(tmp_path / "to")
    copied = {path.name: path.read_bytes() for path in (tmp_path / "to").iterdir()}
    assert "model.safetensors" not in copied
    assert copied == {name: (tmp_path / "from" / name).read_bytes() for name in copied}
    assert {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"} == set(copied)
    assert loaded.sha256 == trained.sha256


def test_a_lone_file_is_enough_and_its_copy_names_the_end_of_document(trained, tmp_path):
    trained.copy_to(tmp_path)
    lone = (tmp_path / "tokenizer.json").rename(tmp_path / "code.json")
    Tokenizer.load(lone).copy_to(tmp_path / "to")
    assert json.loads((tmp_path / "to" / "tokenizer_config.json").read_text())["eos_token"] == END_OF_DOCUMENT
    assert json.loads((tmp_path / "to" / "special_tokens_map.json").read_text()) == {"eos_token": END_OF_DOCUMENT}
    assert Tokenizer.load(tmp_path / "to").encode(PYTHON) == trained.encode(PYTHON)


@pytest.mark.parametrize("eos_token", ["!", {"content": "!", "lstrip": False}])
def test_the_configured_end_of_document_comes_before_the_well_known(trained, tmp_path, eos_token):
    write_tokenizer(tmp_path, trained, eos_token=eos_token)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert Tokenizer.load(path).eod_id == trained.encode("!")[0]


def test_the_vocabulary_counts_added_tokens(trained, tmp_path):
    trained.copy_to(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 999, "content": "<extra>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode("<extra>") == [loaded.vocab_size - 1]
    assert loaded.vocab_size > trained.vocab_size


def test_truncation_and_padding_of_a_file_do_not_touch_documents(trained, tmp_path):
    trained.copy_to(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": END_OF_DOCUMENT,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert Tokenizer.load(tmp_path).encode_batch([PYTHON, "a"]) == trained.encode_batch([PYTHON, "a"])


def test_a_missing_tokenizer_is_named_with_the_way_to_make_one(tmp_path):
    for path in (tmp_path, tmp_path / "absent.json"):
        with pytest.raises(DataError, match=r"is no tokenizer\.json and no folder that holds one\. .*AutoTokenizer"):
            Tokenizer.load(path)


@pytest.mark.parametrize("content", [b"no", b"{}", b"\xff", b'{"model": {"type": "BPE", "vocab": {}, "merges": 1}}'])
def test_an_invalid_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match=r"the tokenizer\.json is not valid \("):
        Tokenizer.load(tmp_path)


def test_an_oversized_tokenizer_is_not_read(trained, tmp_path, monkeypatch):
    trained.copy_to(tmp_path)
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 100)
    with pytest.raises(DataError, match=r"tokenizer\.json: has .* bytes, more than the 100 that such a file may have"):
        Tokenizer.load(tmp_path)


def test_a_damaged_configuration_is_named(trained, tmp_path):
    trained.copy_to(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer_config\.json: not JSON"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("eos_token", [["!"], 5, {"content": ["!"]}, "<|absent|>"])
def test_an_end_of_document_that_is_no_token_is_refused(trained, tmp_path, eos_token):
    write_tokenizer(tmp_path, trained, eos_token=eos_token)
    with pytest.raises(DataError, match=r"the eos_token of tokenizer_config\.json, .*, is not in tokenizer\.json\."):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_without_end_of_document_is_refused(trained, tmp_path):
    trained.copy_to(tmp_path)
    content = (tmp_path / "tokenizer.json").read_text().replace(END_OF_DOCUMENT, "<|start|>")
    (tmp_path / "tokenizer.json").write_text(content)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(DataError, match=r'no end-of-document token\. Name one as "eos_token" in tokenizer_config'):
        Tokenizer.load(tmp_path)
