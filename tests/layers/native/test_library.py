"""The kernels' library is built once, kept verified, and built again when anything it depends on changes."""

from __future__ import annotations

import os

import pytest

from mindmodel.errors import LayoutError
from mindmodel.layers.native import library
from mindmodel.machine import cpp_compiler
from mindmodel.terminal import Terminal

SOURCE = 'extern "C" void mindmodel_set_threads(int) {}\n'

pytestmark = pytest.mark.skipif(cpp_compiler() is None, reason="needs a C++ compiler: apt-get install g++")


@pytest.fixture(autouse=True)
def sources(tmp_path, monkeypatch):
    """A library of one empty function, and a cache of its own."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "kernel.cc").write_text(SOURCE)
    monkeypatch.setattr(library, "SOURCES", folder)
    monkeypatch.setattr(library, "_in_use", None)
    monkeypatch.setenv("MINDMODEL_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def built(monkeypatch):
    """Texts of the builds so far."""
    texts = []
    whole = library._build

    def build(compiler, folder, working):
        texts.append(folder.name)
        return whole(compiler, folder, working)

    monkeypatch.setattr(library, "_build", build)
    return texts


def test_it_is_built_once_in_a_private_folder_of_the_cache(built, tmp_path):
    path = library.find_or_build()
    assert library.find_or_build() == path and len(built) == 1
    assert path.is_relative_to(tmp_path / "cache" / "kernels")
    assert os.stat(tmp_path / "cache" / "kernels").st_mode & 0o777 == 0o700
    assert {file.name for file in path.parent.iterdir()} == {"libmindmodel.so", "manifest.json"}


def test_it_is_built_again_when_a_source_changes(built, sources):
    first = library.find_or_build()
    (sources / "kernel.h").write_text("// new\n")
    second = library.find_or_build()
    (sources / "kernel.cc").write_text(SOURCE + "\n")
    assert len({first, second, library.find_or_build()}) == 3 == len(built)


def test_it_is_built_again_for_another_cpu_or_compiler(built, monkeypatch):
    first = library.find_or_build()
    monkeypatch.setattr(library, "cpu_features", lambda: frozenset({"another"}))
    second = library.find_or_build()
    monkeypatch.setattr(library, "FLAGS", (*library.FLAGS, "-DOTHER"))
    assert len({first, second, library.find_or_build()}) == 3 == len(built)


@pytest.mark.parametrize("name", ["libmindmodel.so", "manifest.json"])
@pytest.mark.parametrize("damage", [b"", b"\x7fELF of somebody else"])
def test_a_damaged_library_is_never_loaded_but_built_again(name, damage, built):
    path = library.find_or_build()
    whole = path.read_bytes()
    (path.parent / name).write_bytes(damage)
    assert library.find_or_build().read_bytes() == whole and len(built) == 2


def test_without_a_cache_it_is_built_for_this_process(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINDMODEL_CACHE", str(tmp_path / "file"))
    path = library.find_or_build()
    assert path.is_file() and not path.is_relative_to(tmp_path / "file")


def test_a_failed_build_names_the_compilers_error_and_leaves_nothing(sources, tmp_path):
    (sources / "kernel.cc").write_text("int nonsense(;\n")
    with pytest.raises(library.BuildError, match=r"failed: .*kernel.cc:1.*error"):
        library.find_or_build()
    assert [path.name for path in (tmp_path / "cache" / "kernels").iterdir()] == [".lock"]


def test_a_library_without_the_kernels_is_refused(sources):
    (sources / "kernel.cc").write_text("int nothing;\n")
    with pytest.raises(library.BuildError, match="cannot be loaded: .*mindmodel_set_threads"):
        library.use(library.find_or_build())
    assert library.in_use() is None


def test_no_compiler_is_said(monkeypatch):
    monkeypatch.setattr(library, "cpp_compiler", lambda: None)
    with pytest.raises(library.BuildError, match="no C\\+\\+ compiler"):
        library.find_or_build()


@pytest.fixture
def choose(runtime, capsys):
    """Function: the runtime's choice for a value of runtime.cpu_kernels, and what it said."""
    from mindmodel.parallel.runtime import _use_native_kernels

    def run(asked: str) -> tuple[bool, str]:
        return _use_native_kernels(asked, 1, Terminal()), capsys.readouterr().out

    return run


def test_auto_takes_the_native_kernels_and_says_when_they_are_built(choose):
    assert choose("auto") == (True, "building the CPU kernels, once ...\n")
    assert choose("native") == (True, "")
    assert library.in_use() is not None


def test_graph_takes_none(choose):
    assert choose("graph") == (False, "") and library.in_use() is None


def test_where_they_cannot_be_built_auto_says_so_once_and_native_ends(choose, sources):
    (sources / "kernel.cc").write_text("int nonsense(;\n")
    native, said = choose("auto")
    assert not native and "no native CPU kernels, the graph's formulas are used instead: " in said
    with pytest.raises(LayoutError, match="runtime.cpu_kernels: 'native' cannot be had: .* Use auto or graph."):
        choose("native")
