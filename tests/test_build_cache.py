"""What is built is made once, kept in private, and only handed out as it was written."""

from __future__ import annotations

import sys

import pytest

from mindmodel import build_cache
from mindmodel.build_cache import BuildError, find_or_make, is_whole, run_tool, write_manifest
from mindmodel.files import write_folder_safely


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINDMODEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def make():
    """Makes a folder of two files, and counts."""

    def run(folder):
        run.made.append(folder)
        with write_folder_safely(folder) as new:
            (new / "deep").mkdir()
            (new / "deep" / "one").write_text("1")
            (new / "two").write_text("2")
            write_manifest(new)

    run.made = []
    return run


def test_it_is_made_once_in_a_folder_that_is_the_users_alone(make, cache):
    for _ in range(2):
        assert find_or_make("room", "key", make) == cache / "room" / "key"
    assert make.made == [cache / "room" / "key"]
    assert (cache / "room").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["two", "deep/one", "manifest.json"])
def test_what_is_missing_or_altered_makes_it_not_whole(name, make):
    folder = find_or_make("room", "key", make)
    assert is_whole(folder)
    (folder / name).write_text("3")
    assert not is_whole(folder)
    (folder / name).unlink()
    assert not is_whole(folder)
    assert is_whole(find_or_make("room", "key", make))


@pytest.mark.parametrize("text", ["{}", "[]", '{"../secret": "0"}', '{"two": null}'])
def test_a_manifest_that_says_nothing_or_leads_out_is_not_trusted(text, make, cache):
    folder = find_or_make("room", "key", make)
    (folder / "manifest.json").write_text(text)
    assert not is_whole(folder)


def test_without_a_cache_it_is_made_for_this_process(make, cache):
    cache.write_text("a file")
    folder = find_or_make("room", "key", make)
    assert is_whole(folder) and folder.parent.name.startswith("mindmodel-room-")


def test_what_a_tool_says_is_returned():
    assert run_tool([sys.executable, "-c", "print(1)"]) == "1\n"


def test_a_tool_that_fails_is_told_with_its_first_error():
    program = "import sys; sys.exit('note\\nan error\\nanother error')"
    with pytest.raises(BuildError, match="failed: an error$"):
        run_tool([sys.executable, "-c", program])
    with pytest.raises(BuildError, match="failed: 3$"):
        run_tool([sys.executable, "-c", "raise SystemExit(3)"])


def test_a_tool_that_is_missing_or_hangs_is_told(monkeypatch):
    with pytest.raises(BuildError, match="nowhere/g.*No such file"):
        run_tool(["nowhere/g++"])
    monkeypatch.setattr(build_cache, "BUILD_LIMIT_S", 0.1)
    with pytest.raises(BuildError, match="timed out"):
        run_tool([sys.executable, "-c", "import time; time.sleep(9)"])
