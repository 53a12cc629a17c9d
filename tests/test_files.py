"""Files are whole or absent, and nothing that is read from a file is trusted."""

import hashlib

import pytest

from mindmodel import files
from mindmodel.errors import CheckpointError, DataError


def test_a_text_is_written_whole_and_nothing_else_is_left(tmp_path):
    files.write_text_safely(tmp_path / "a.txt", "eins\n")
    files.write_text_safely(tmp_path / "a.txt", "zwei ü\n")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "zwei ü\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_failed_write_leaves_the_former_text(tmp_path, monkeypatch):
    files.write_text_safely(tmp_path / "a.txt", "former")

    def fail(descriptor):
        raise OSError("no space")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        files.write_text_safely(tmp_path / "a.txt", "later")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "former")]


def test_a_folder_appears_only_when_it_is_whole(tmp_path):
    with files.write_folder_safely(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        assert folder.name == ".out.tmp" and not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "a").read_text() == "1"


def test_a_failed_folder_leaves_the_former_one(tmp_path):
    with files.write_folder_safely(tmp_path / "out") as folder:
        (folder / "a").write_text("former")
    with pytest.raises(OSError, match="no space"):
        with files.write_folder_safely(tmp_path / "out") as folder:
            (folder / "a").write_text("later")
            raise OSError("no space")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "former"


def test_a_folder_that_cannot_take_its_name_leaves_the_former_one(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("former")
    rename = files.os.rename

    def fail_once(source, target):
        if source.name == ".out.tmp":
            raise OSError("interrupted")
        rename(source, target)

    monkeypatch.setattr(files.os, "rename", fail_once)
    with pytest.raises(OSError, match="interrupted"):
        with files.write_folder_safely(tmp_path / "out"):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "former"


def test_a_folder_replaces_the_former_one_and_what_a_killed_process_left(tmp_path):
    for name in ("out", ".out.tmp", ".out.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "stale").write_text("")
    with files.write_folder_safely(tmp_path / "out") as folder:
        (folder / "fresh").write_text("")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["out", "out/fresh"]


def test_a_file_is_copied_byte_for_byte(tmp_path):
    (tmp_path / "a").write_bytes(b"\r\n\xff\0")
    files.copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"\r\n\xff\0"


def test_json_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1]}')
    assert files.read_json(tmp_path / "a.json", DataError) == {"a": [1]}


@pytest.mark.parametrize(
    "content, fault",
    [
        (b"{", "a.json: not JSON"),
        (b"\xff", "a.json: not JSON"),
        (b"[" * 100_000, "a.json: not JSON"),
        (b"[1]", "a JSON object was expected, this is a list"),
    ],
)
def test_damaged_json_is_refused(tmp_path, content, fault):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=fault):
        files.read_json(tmp_path / "a.json", DataError)


def test_json_that_is_missing_or_too_long_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="a.json: there is no such file"):
        files.read_json(tmp_path / "a.json", CheckpointError)
    (tmp_path / "a.json").write_text('{"a": 1}')
    with pytest.raises(CheckpointError, match="8 bytes, more than the 7"):
        files.read_json(tmp_path / "a.json", CheckpointError, max_bytes=7)


def test_the_checksum_is_that_of_the_content(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert files.sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "b/../../a", "", ".", "a\\b", "a\0", None, 3])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="leads out of the folder"):
        files.file_inside(tmp_path, name, DataError)


def test_a_file_inside_the_folder_is_found_also_through_a_link(tmp_path):
    (tmp_path / "blob").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to("../blob")
    assert files.file_inside(tmp_path / "folder", "link", DataError).read_text() == "x"


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match="'a.bin' is missing. The folder is not complete"):
        files.file_inside(tmp_path, "a.bin", DataError)
