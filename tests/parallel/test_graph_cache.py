"""The folder of compiled kernels: one owner, verified content, and never a reason to stop."""

from __future__ import annotations

import dataclasses
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import mindmodel
from mindmodel.parallel import graph_cache
from mindmodel.parallel.graph_cache import GRAPHS_KEPT, GraphCache, front_end, graph_key


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A cache of the test's own; MindSpore's variable comes back."""
    monkeypatch.setenv("MINDMODEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MS_COMPILER_CACHE_PATH", os.environ.get("MS_COMPILER_CACHE_PATH", ""))
    return tmp_path / "cache"


@pytest.fixture
def opened(monkeypatch):
    """Opens caches as processes of their own would: the lock of each is given back on request."""
    caches = []

    def open_cache():
        for cache in caches:
            if hasattr(cache, "_lock"):
                os.close(cache._lock)
                del cache._lock
        caches.append(GraphCache())
        return caches[-1]

    yield open_cache
    for cache in caches:
        if hasattr(cache, "_lock"):
            os.close(cache._lock)


def compile_into(cache, name="kernel.so", content="whole"):
    with cache.compiling():
        Path("log_of_the_compiler").write_text("")
        (cache.folder / name).write_text(content)


def test_the_folder_is_private_and_mindspore_is_told(opened, home):
    cache = opened()
    assert cache.folder.is_relative_to(home / "graphs")
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    assert os.environ["MS_COMPILER_CACHE_PATH"] == str(cache.folder)


def test_what_was_compiled_in_full_is_there_the_next_time(opened):
    compile_into(opened())
    assert (opened().folder / "kernel.so").read_text() == "whole"


def test_what_a_killed_process_left_is_removed(opened):
    cache = opened()
    compile_into(cache)
    (cache.folder / "deep").mkdir()
    (cache.folder / "deep" / "half.so").write_text("ha")
    folder = opened().folder
    assert (folder / "kernel.so").exists() and not (folder / "deep" / "half.so").exists()


def test_a_file_that_was_altered_is_removed(opened):
    cache = opened()
    compile_into(cache)
    (cache.folder / "kernel.so").write_text("evil!")
    assert not (opened().folder / "kernel.so").exists()


@pytest.mark.parametrize("manifest", ["", "[]", "{", '{"kernel.so": 7}'])
def test_with_a_damaged_manifest_nothing_is_kept(manifest, opened):
    cache = opened()
    compile_into(cache)
    (cache.folder / "manifest.json").write_text(manifest)
    assert not (opened().folder / "kernel.so").exists()


def test_while_compiling_the_terminal_is_quiet_and_the_working_folder_clean(opened, tmp_path, monkeypatch, capfd):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    cache = opened()
    with cache.compiling():
        os.write(1, b"chatter\n")
        os.write(2, b"more\n")
        Path("dsa_transfrom.log").write_text("")
    print("after")
    assert capfd.readouterr() == ("after\n", "")
    assert Path.cwd() == tmp_path / "work" and not list(Path.cwd().iterdir())
    assert (cache.folder / "compile.log").read_text() == "chatter\nmore\n"


def test_when_compiling_fails_the_terminal_and_the_folder_come_back(opened, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    cache = opened()
    with pytest.raises(RuntimeError, match="no"):
        with cache.compiling():
            (cache.folder / "half.so").write_text("")
            raise RuntimeError("no")
    print("after")
    assert capfd.readouterr().out == "after\n" and Path.cwd() == tmp_path
    assert not (opened().folder / "half.so").exists()


SECOND = """
from mindmodel.parallel.graph_cache import GRAPHS_KEPT, GraphCache, front_end, graph_key
cache = GraphCache()
with cache.compiling():
    (cache.folder / "kernel.so").write_text("")
print(cache.folder)
"""


def test_a_second_process_gets_a_folder_of_its_own_that_goes_with_it(opened):
    first = opened()
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", SECOND], cwd=root, capture_output=True, text=True, check=True)
    second = Path(done.stdout.strip())
    assert second != first.folder and not second.exists()
    assert not (first.folder / "kernel.so").exists()


@pytest.mark.parametrize("place", ["/proc/nowhere", "{}/file/cache"])
def test_a_home_that_cannot_be_written_is_no_reason_to_stop(place, opened, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINDMODEL_CACHE", place.format(tmp_path))
    cache = opened()
    compile_into(cache)
    assert (cache.folder / "kernel.so").exists() and "mindmodel-graphs-" in cache.folder.name


def test_a_home_that_nobody_knows_is_no_reason_to_stop(opened, monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(graph_cache, "cache_folder", unknown)
    assert "mindmodel-graphs-" in opened().folder.name


def test_a_relative_cache_does_not_move_with_the_working_folder(opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINDMODEL_CACHE", "here")
    cache = opened()
    compile_into(cache)
    assert cache.folder.is_relative_to(tmp_path / "here") and (cache.folder / "manifest.json").exists()


def test_a_full_disk_costs_only_the_manifest(opened, monkeypatch):
    def full(folder):
        raise OSError(28, "No space left on device")

    cache = opened()
    monkeypatch.setattr(graph_cache, "write_manifest", full)
    compile_into(cache)
    assert not (opened().folder / "kernel.so").exists()


def test_the_first_graph_alone_is_kept_for_its_key(opened):
    cache = opened()
    cache.keep_graph("one")
    with cache.compiling(kept=True):
        assert os.environ["MS_COMPILER_CACHE_ENABLE"] == "1"
        (cache.folder / front_end() / "graph.mindir").write_text("one's")
    with cache.compiling():
        assert os.environ["MS_COMPILER_CACHE_ENABLE"] == "0"
    cache = opened()
    cache.keep_graph("two")
    assert not list((cache.folder / front_end()).iterdir())
    cache.keep_graph("one")
    assert (cache.folder / front_end() / "graph.mindir").read_text() == "one's"


def test_a_graph_that_was_altered_is_removed(opened):
    cache = opened()
    cache.keep_graph("one")
    with cache.compiling(kept=True):
        (cache.folder / front_end() / "graph.mindir").write_text("whole")
    (cache.folder / front_end() / "graph.mindir").write_text("evil!")
    cache = opened()
    cache.keep_graph("one")
    assert not list((cache.folder / front_end()).iterdir())


def test_the_oldest_graphs_are_removed(opened):
    cache = opened()
    for i in range(GRAPHS_KEPT + 3):
        cache.keep_graph(str(i))
        os.utime(cache.folder / "front_end" / str(i), (i, i))
    kept = {path.name for path in (cache.folder / "front_end").iterdir()}
    assert kept == {str(i) for i in range(3, GRAPHS_KEPT + 3)}


def test_without_a_key_no_graph_is_kept(opened):
    with opened().compiling(kept=True):
        assert os.environ["MS_COMPILER_CACHE_ENABLE"] == "0"


def replaced(recipe, section, **keys):
    return dataclasses.replace(recipe, **{section: dataclasses.replace(getattr(recipe, section), **keys)})


def test_a_graphs_key_is_of_all_that_matters_to_it(small_recipe, monkeypatch):
    key = graph_key(small_recipe, "train", None)
    others = [
        graph_key(replaced(small_recipe, "model", rope_theta=5e5), "train", None),
        graph_key(replaced(small_recipe, "train", z_loss=1e-4), "train", None),
        graph_key(replaced(small_recipe, "optim", beta2=0.99), "train", None),
        graph_key(replaced(small_recipe, "data", seq_len=4), "train", None),
        graph_key(replaced(small_recipe, "parallel", micro_batches=2), "train", None),
        graph_key(small_recipe, "eval", None),
        graph_key(small_recipe, "train", Path("library.so")),
    ]
    monkeypatch.setattr(graph_cache, "version", lambda name: "another")
    others.append(graph_key(small_recipe, "train", None))
    assert len({key, *others}) == 1 + len(others)


def test_a_graphs_key_is_not_of_what_only_the_run_is_made_of(small_recipe):
    longer = replaced(small_recipe, "train", steps=77, seed=9, stop_at=3)
    same = replaced(replaced(longer, "optim", peak_lr=1e-4), "runtime", output="elsewhere")
    assert graph_key(same, "train", None) == graph_key(small_recipe, "train", None)


def test_a_graphs_key_is_of_every_source(small_recipe, tmp_path, monkeypatch):
    package = Path(mindmodel.__file__).parent
    shutil.copytree(package, tmp_path / "mindmodel")
    monkeypatch.setattr(mindmodel, "__file__", str(tmp_path / "mindmodel" / "__init__.py"))
    key = graph_key(small_recipe, "train", None)
    with open(tmp_path / "mindmodel" / "layers" / "mlp.py", "a") as file:
        file.write("# changed\n")
    assert graph_key(small_recipe, "train", None) != key


def test_every_rank_has_a_folder_of_its_own_and_its_graph_in_it(monkeypatch, home):
    folders = set()
    for rank in range(2):
        monkeypatch.setenv("MS_ROLE", "MS_WORKER")
        monkeypatch.setenv("MS_NODE_ID", str(rank))
        monkeypatch.setenv("MS_WORKER_NUM", "2")
        cache = GraphCache()
        cache.keep_graph("key")
        assert (cache.folder / f"rank_{rank}" / "graph_cache").is_symlink()
        folders.add(cache.folder)
    assert len(folders) == 2 and all(folder.is_relative_to(home) for folder in folders)
