"""Sources become documents, in one order, or say what is wrong with them."""

import sysconfig

import pytest

from mindmodel.data.sources import documents
from mindmodel.errors import DataError


def write(folder, texts):
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8"))


def names_and_texts(*source):
    return [(document.name, document.text) for document in documents(source)]


def test_a_file_is_one_document_byte_for_byte(tmp_path):
    write(tmp_path, {"a.txt": "one\r\ntwo é\n"})
    path = str(tmp_path / "a.txt")
    assert names_and_texts(path) == [(path, "one\r\ntwo é\n")]


def test_entries_are_read_in_the_order_given(tmp_path):
    write(tmp_path, {"a.txt": "a", "b.txt": "b"})
    texts = [text for _, text in names_and_texts(str(tmp_path / "b.txt"), str(tmp_path / "a.txt"))]
    assert texts == ["b", "a"]


def test_a_folder_gives_its_text_files_sorted_by_path(tmp_path):
    write(tmp_path, {"z.txt": "z", "b/c.md": "c", "b/a.py": "a", "d.jsonl": '{"text": "d"}', "image.png": "no"})
    assert [text for _, text in names_and_texts(str(tmp_path))] == ["a", "c", "d", "z"]


def test_a_glob_may_cross_folders_and_takes_any_file(tmp_path):
    write(tmp_path, {"x.rst": "x", "deep/er/y.rst": "y", "n.txt": "n"})
    assert [text for _, text in names_and_texts(str(tmp_path / "**" / "*.rst"))] == ["y", "x"]


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path):
    (tmp_path / "a[1].txt").write_text("one")
    assert [text for _, text in names_and_texts(str(tmp_path / "a[1].txt"))] == ["one"]


def test_json_lines_are_documents_and_blank_lines_are_not(tmp_path):
    write(tmp_path, {"a.jsonl": '{"text": "one", "id": 1}\n\n{"text": "two\\n"}'})
    path = (tmp_path / "a.jsonl").as_posix()
    assert names_and_texts(path) == [(f"{path}:1", "one"), (f"{path}:3", "two\n")]


def test_documents_of_only_whitespace_are_left_out(tmp_path):
    write(tmp_path, {"a.txt": " \n\t", "b.txt": "b", "c.jsonl": '{"text": ""}'})
    assert [text for _, text in names_and_texts(str(tmp_path))] == ["b"]


def test_stdlib_is_python_files_sorted_without_packages_tests_and_other_encodings(tmp_path, monkeypatch):
    kept = ["contest.py", "email/a.py", "email/b.py", "os.py"]
    tests = ["test/x.py", "email/test/x.py", "lib2to3/tests/x.py", "idlelib/idle_test/x.py"]
    others = ["site-packages/x.py", "dist-packages/x.py", "__pycache__/x.py", "LICENSE.txt"]
    write(tmp_path, {name: "text" for name in kept[::-1] + tests + others})
    (tmp_path / "latin.py").write_bytes("é".encode("latin-1"))
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere.py")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert names_and_texts("stdlib") == [(f"stdlib/{name}", "text") for name in kept]


def test_stdlib_of_this_interpreter_is_there_in_the_same_order_each_time():
    names = [document.name for document in documents(["stdlib"])]
    assert {"stdlib/abc.py", "stdlib/json/decoder.py"} <= set(names)
    assert not any("/test/" in name or "/tests/" in name or "-packages/" in name for name in names)
    assert names == sorted(names) == [document.name for document in documents(["stdlib"])]


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match=r"absent\.txt: there is no such file or folder\. A source is stdlib, a file"):
        names_and_texts(str(tmp_path / "absent.txt"))
    with pytest.raises(DataError, match=r"\*\.txt: the glob matches no file\."):
        names_and_texts(str(tmp_path / "*.txt"))
    with pytest.raises(DataError, match=r"the folder holds no \.txt, \.md, \.py, \.jsonl file\."):
        names_and_texts(str(tmp_path))


def test_a_source_without_text_is_refused(tmp_path):
    write(tmp_path, {"a.txt": "\n"})
    with pytest.raises(DataError, match=r"no text in .*a\.txt\. Name files that hold some\."):
        names_and_texts(str(tmp_path / "a.txt"))
    with pytest.raises(DataError, match="no text in an empty list"):
        names_and_texts()


def test_a_file_that_is_not_utf8_is_named_with_the_byte(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc\xe9def")
    with pytest.raises(DataError, match=r"a\.txt: byte 3 is not UTF-8 \(invalid continuation byte\)\. Convert"):
        names_and_texts(str(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"no", r"is not JSON \(Expecting value"),
        (b'{"text": "\xff"}', r"is not JSON \(.*decode byte 0xff"),
        (b"[1]", r"is a JSON list\. A line is an object such as"),
        (b'{"body": "b", "id": 1}', r'has no string in the key "text"\. Its keys: body, id\.'),
        (b'{"text": 1}', r'has no string in the key "text"\. Its keys: text\.'),
        (b'{"text": "a\\ud800"}', r"character 1 of the text is half of a surrogate pair"),
    ],
)
def test_a_json_line_that_holds_no_text_is_named_by_file_and_line(tmp_path, line, fault):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"a\.jsonl, line 2: {fault}"):
        names_and_texts(str(tmp_path / "a.jsonl"))
