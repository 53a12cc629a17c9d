"""A run's corpus: made once from text, reused when it is whole and what was asked for, or opened as it was prepared."""

import json
import shutil
from pathlib import Path

import pytest

from mindmodel.data import prepare as module
from mindmodel.data.prepare import prepare, reopen
from mindmodel.data.tokenizer import Tokenizer, train_tokenizer
from mindmodel.data.tokens import TokenWriter
from mindmodel.errors import DataError
from mindmodel.recipe.schema import DataSection

TEXTS = [f"def function_{number}(x):\n    return x + {number}\n" for number in range(40)]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return str(path)


def section(path, **changes):
    return DataSection(**{"source": (path,), "tokenizer_vocab_size": 300, "seq_len": 8, "heldout": 0.2, **changes})


def quiet(text):
    """Progress that nobody reads."""


def stream_texts(corpus, tokens):
    text = corpus.tokenizer.decode(tokens.read(0, tokens.num_tokens))
    return text.split("<|endoftext|>")[:-1]


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_document_is_on_one_side_and_ends_with_the_end_of_document(tmp_path, source):
    corpus = prepare(section(source), tmp_path / "run", quiet)
    train, heldout = stream_texts(corpus, corpus.train), stream_texts(corpus, corpus.heldout)
    assert sorted(train + heldout) == sorted(TEXTS)
    assert 2 <= len(heldout) <= 15
    assert (corpus.train.num_documents, corpus.heldout.num_documents) == (len(train), len(heldout))
    assert corpus.train.read(corpus.train.num_tokens - 1, corpus.train.num_tokens) == [corpus.tokenizer.eod_id]


def test_the_tokenizer_is_trained_on_training_documents_only(tmp_path, source):
    corpus = prepare(section(source), tmp_path / "run", quiet)
    assert corpus.tokenizer.sha256 == train_tokenizer(stream_texts(corpus, corpus.train), 300).sha256


def test_the_record_says_what_the_corpus_was_made_from(tmp_path, source):
    corpus = prepare(section(source), tmp_path / "run", quiet)
    record = json.loads((tmp_path / "run" / "data" / "corpus.json").read_text())
    assert record["made_from"] == {
        "source": [source], "tokenizer": "train", "tokenizer_vocab_size": 300, "heldout": 0.2,
    }
    assert record["train"]["documents"] + record["heldout"]["documents"] == len(TEXTS)
    assert record["train"]["bytes"] + record["heldout"]["bytes"] == len("".join(TEXTS))
    assert record["heldout"]["tokens"] == corpus.heldout.num_tokens
    assert set(record["shards"]) == {"train.bin", "train.idx", "heldout.bin", "heldout.idx"}
    assert record["tokenizer_json"]["sha256"] == corpus.tokenizer.sha256


def test_the_same_text_gives_the_same_files_and_nothing_else_is_left(tmp_path, source):
    for name in "ab":
        prepare(section(source), tmp_path / name, quiet)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["data", "tokenizer"]


def test_progress_names_each_stage(tmp_path, source):
    said = []
    prepare(section(source), tmp_path / "run", said.append)
    assert said == ["reading text", "training the tokenizer", "writing token shards"]


def test_progress_is_told_after_each_megabyte(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("word " * 200_000)
    said = []
    list(module._read(section(str(tmp_path)), "reading text", said.append))
    assert said == [
        "reading text", "reading text: 1 documents, 1 MB", "reading text: 2 documents, 2 MB",
        "reading text: 3 documents, 3 MB",
    ]


def test_a_whole_corpus_is_reused_without_its_text(tmp_path, source):
    first = prepare(section(source), tmp_path / "run", quiet)
    Path(source).unlink()
    again = prepare(section(source, seq_len=16), tmp_path / "run", quiet)
    assert stream_texts(again, again.train) == stream_texts(first, first.train)


def test_an_interrupted_preparation_starts_anew(tmp_path, source, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "_made_from", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(section(source), tmp_path / "run", quiet)
    assert not (tmp_path / "run" / "data").exists()
    prepare(section(source), tmp_path / "run", quiet)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["data", "tokenizer"]


def test_a_large_corpus_trains_the_tokenizer_on_an_even_sample():
    texts = [f"{number:04}" for number in range(1000)]
    sample = list(module._sample(texts, 0.1))
    assert sample == texts[::10]
    assert list(module._sample(texts, 1.5)) == texts


def test_a_tokenizer_that_is_given_is_used_and_copied(tmp_path, source):
    given = train_tokenizer(["other words entirely"], 270)
    given.copy_to(tmp_path / "given")
    corpus = prepare(section(source, tokenizer=str(tmp_path / "given")), tmp_path / "run", quiet)
    assert files_of(tmp_path / "run" / "tokenizer") == files_of(tmp_path / "given")
    assert sorted(stream_texts(corpus, corpus.train) + stream_texts(corpus, corpus.heldout)) == sorted(TEXTS)


def test_without_held_out_documents_their_stream_is_empty(tmp_path, source):
    corpus = prepare(section(source, heldout=0.0), tmp_path / "run", quiet)
    assert (corpus.train.num_documents, corpus.heldout.num_tokens) == (len(TEXTS), 0)
    assert prepare(section(source, heldout=0.0), tmp_path / "run", quiet).heldout.num_documents == 0


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("heldout", 0.3, r"data\.heldout 0\.2; the recipe has 0\.3"),
        ("source", ("stdlib",), r"data\.source \['.*text\.jsonl'\]; the recipe has \['stdlib'\]"),
        ("tokenizer_vocab_size", 280, r"data\.tokenizer_vocab_size 300; the recipe has 280"),
        ("tokenizer", "llama", r"data\.tokenizer 'train'; the recipe has 'llama'"),
    ],
)
def test_a_corpus_of_other_settings_is_refused(tmp_path, source, key, value, shown):
    prepare(section(source), tmp_path / "run", quiet)
    with pytest.raises(DataError, match=rf"the corpus was made with {shown}\. Use another runtime\.output, or .* Del"):
        prepare(section(source, **{key: value}), tmp_path / "run", quiet)


@pytest.mark.parametrize(
    "name", ["data/train.bin", "data/train.idx", "data/heldout.bin", "data/heldout.idx", "tokenizer/tokenizer.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_corpus_is_refused_and_remade_once_deleted(tmp_path, source, name, damage):
    prepare(section(source), tmp_path / "run", quiet)
    whole, path = files_of(tmp_path / "run"), tmp_path / "run" / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + (bytes([content[-1] ^ 1]) if damage == "flip" else b""))
    if damage == "remove":
        path.unlink()
    with pytest.raises(DataError, match=rf"{path.name}: is missing or not as it was made, by size or checksum\. Del"):
        prepare(section(source), tmp_path / "run", quiet)
    for folder in ("data", "tokenizer"):
        shutil.rmtree(tmp_path / "run" / folder)
    prepare(section(source), tmp_path / "run", quiet)
    assert files_of(tmp_path / "run") == whole


def test_a_corpus_without_a_sound_record_is_refused(tmp_path, source):
    prepare(section(source), tmp_path / "run", quiet)
    record = tmp_path / "run" / "data" / "corpus.json"
    record.write_text('{"made_from": {}}')
    with pytest.raises(DataError, match=r"corpus\.json: is damaged: made_from or shards is missing\. Delete"):
        prepare(section(source), tmp_path / "run", quiet)
    record.unlink()
    with pytest.raises(DataError, match=r"corpus\.json: is missing, so the folder holds no whole corpus\. Delete"):
        prepare(section(source), tmp_path / "run", quiet)


def test_another_tokenizer_of_the_run_is_never_replaced(tmp_path, source):
    train_tokenizer(["other"], 270).copy_to(tmp_path / "run" / "tokenizer")
    with pytest.raises(DataError, match=r"tokenizer: holds another tokenizer than the recipe's data give\."):
        prepare(section(source), tmp_path / "run", quiet)


def test_missing_text_leaves_no_run_folder(tmp_path):
    with pytest.raises(DataError, match="there is no such file or folder"):
        prepare(section(str(tmp_path / "absent")), tmp_path / "run", quiet)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def prepared(tmp_path):
    """A folder of prepared shards with a tokenizer of 257 tokens."""
    folder = tmp_path / "prepared"
    train_tokenizer(["a"], 300).copy_to(folder / "tokenizer")
    for name, ids in (("train", [5, 6, 256]), ("heldout", [7])):
        with TokenWriter(folder / name, vocab_size=257) as writer:
            writer.add(ids)
    return folder


def open_prepared(folder, tmp_path, **changes):
    return prepare(DataSection(path=str(folder), seq_len=8, **changes), tmp_path / "run", quiet)


def test_prepared_shards_are_opened_where_they_are(tmp_path, prepared):
    for _ in range(2):
        corpus = open_prepared(prepared, tmp_path)
        assert corpus.train.read(0, 3).tolist() == [5, 6, 256]
        assert corpus.heldout.read(0, 1).tolist() == [7]
    assert Tokenizer.load(tmp_path / "run" / "tokenizer").sha256 == corpus.tokenizer.sha256
    assert not (tmp_path / "run" / "data").exists()


def test_prepared_shards_need_no_held_out_ones(tmp_path, prepared):
    for path in (prepared / "heldout.bin", prepared / "heldout.idx"):
        path.unlink()
    assert open_prepared(prepared, tmp_path).heldout.num_tokens == 0


def test_half_a_held_out_shard_is_refused(tmp_path, prepared):
    (prepared / "heldout.idx").unlink()
    with pytest.raises(DataError, match=r"heldout\.idx: there is no such file"):
        open_prepared(prepared, tmp_path)


def test_prepared_shards_may_have_their_tokenizer_elsewhere(tmp_path, prepared):
    (prepared / "tokenizer").rename(tmp_path / "elsewhere")
    assert open_prepared(prepared, tmp_path, tokenizer=str(tmp_path / "elsewhere")).tokenizer.vocab_size == 257


def test_a_corpus_is_opened_again_without_a_word_written(tmp_path, source, prepared):
    made, shards = section(source), DataSection(path=str(prepared), seq_len=8)
    for path in (prepared / "heldout.bin", prepared / "heldout.idx"):
        path.unlink()
    for data, run in ((made, tmp_path / "made"), (shards, tmp_path / "opened")):
        corpus = prepare(data, run, quiet)
        before = [(path, path.stat().st_mtime_ns) for path in sorted(run.rglob("*"))]
        again = reopen(data, run, quiet)
        assert again.train.num_tokens == corpus.train.num_tokens and again.tokenizer.sha256 == corpus.tokenizer.sha256
        assert [(path, path.stat().st_mtime_ns) for path in sorted(run.rglob("*"))] == before


def test_a_corpus_that_is_gone_is_not_made_again_when_it_is_opened_again(tmp_path, source, prepared):
    with pytest.raises(DataError, match=r"corpus\.json: is missing"):
        reopen(section(source), tmp_path / "run", quiet)
    open_prepared(prepared, tmp_path)
    train_tokenizer(["ab " * 9], 300).copy_to(prepared / "tokenizer")
    with pytest.raises(DataError, match="holds another tokenizer than the recipe's data give"):
        reopen(DataSection(path=str(prepared), seq_len=8), tmp_path / "run", quiet)
    assert not (tmp_path / "run" / "data").exists()


@pytest.mark.parametrize("name", ["train", "heldout"])
def test_prepared_shards_of_another_tokenizer_are_refused(tmp_path, prepared, name):
    with TokenWriter(prepared / name, vocab_size=300) as writer:
        writer.add([1, 257])
    with pytest.raises(DataError, match=rf"{name}\.bin: holds token 257; the tokenizer has 257\. Name the tokenizer"):
        open_prepared(prepared, tmp_path)


def test_a_missing_folder_of_shards_is_named(tmp_path):
    with pytest.raises(DataError, match=r"absent/train\.bin: there is no such file"):
        open_prepared(tmp_path / "absent", tmp_path)
