"""CANN is found, and MindSpore's own files say which versions it takes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from mindmodel import cann
from mindmodel.machine import package_folder


@pytest.fixture(autouse=True)
def no_cann(monkeypatch):
    """An environment that knows no toolkit."""
    for name in cann.TOLD_IN:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def toolkit_in(tmp_path):
    """Function: a folder that looks like CANN, at a path below a root, of a version."""

    def make(path: str, version: str = "9.0.0") -> Path:
        folder = tmp_path / "root" / path
        (folder / "lib64").mkdir(parents=True)
        (folder / "lib64" / "libascendcl.so").write_bytes(b"")
        (folder / "compiler").mkdir()
        (folder / "compiler" / "version.info").write_text(f"Version={version}\n")
        return folder

    return make


@pytest.mark.parametrize("path", ["usr/local/Ascend/ascend-toolkit/latest", "usr/local/Ascend/cann"])
def test_cann_is_found_in_its_usual_places(path, toolkit_in, tmp_path):
    assert cann.real_cann(tmp_path / "root") is None
    assert toolkit_in(path) == cann.real_cann(tmp_path / "root")


@pytest.mark.parametrize("name", cann.TOLD_IN)
def test_cann_that_the_environment_names_comes_first(name, toolkit_in, tmp_path, monkeypatch):
    usual, mine = toolkit_in("usr/local/Ascend/cann"), toolkit_in("opt/cann")
    monkeypatch.setenv(name, str(mine))
    assert cann.real_cann(tmp_path / "root") == mine
    monkeypatch.setenv(name, str(tmp_path / "gone"))
    assert cann.real_cann(tmp_path / "root") == usual


@pytest.mark.parametrize("text, version", [("Version=8.5.0.1\n", "8.5.0.1"), ("nothing\n", None), (None, None)])
def test_the_version_of_cann_is_read(text, version, tmp_path):
    if text is not None:
        (tmp_path / "compiler").mkdir()
        (tmp_path / "compiler" / "version.info").write_text(text)
    assert cann.cann_version(tmp_path) == version


@pytest.mark.parametrize(
    "version, fault",
    [
        ("9.0.0", ""),
        ("8.2.RC1", ""),
        ("8.5.0.1", ""),
        ("8.1.RC1", "MindSpore 2.9.0 takes CANN 8.2, 8.3, 8.5 or 9.0. Install CANN 9.0.0, toolkit and operators"),
        ("9.1.0", "MindSpore 2.9.0 takes CANN 8.2, 8.3, 8.5 or 9.0. Install"),
    ],
)
def test_a_version_is_one_that_mindspore_takes(version, fault, toolkit_in, monkeypatch):
    real = toolkit_in("opt/cann", version)
    monkeypatch.setenv("ASCEND_HOME_PATH", str(real))
    assert cann.fault_of(real).startswith(fault) and bool(cann.fault_of(real)) == bool(fault)


def test_cann_must_be_entered(toolkit_in):
    real = toolkit_in("opt/cann")
    assert cann.fault_of(real) == f"it is not in this environment. Use source {real.parent / 'set_env.sh'}"


@pytest.fixture
def wheel():
    """MindSpore's folder, not imported."""
    folder = package_folder("mindspore")
    if folder is None or f"'{cann.MINDSPORE}'" not in (folder / "version.py").read_text():
        pytest.skip(f"MindSpore {cann.MINDSPORE} is not installed")
    return folder


def test_the_accepted_versions_are_those_in_the_wheel(wheel):
    text = (wheel / "run_check" / "_check_version.py").read_text()
    ascend = text[text.index("class AscendEnvChecker"):]
    assert cann.ACCEPTED == tuple(ast.literal_eval(re.search(r"self\.version = (\[.*?\])", ascend)[1]))


def test_the_wheels_own_operators_are_compiled_with_the_version_that_is_advised(wheel):
    path = wheel / "lib" / "plugin" / "ascend" / "custom_ascendc_910b" / "version.info"
    if not path.is_file():
        pytest.skip("a MindSpore without Ascend's plugin")
    assert path.read_text().strip().split("=")[1].startswith(cann.BUILT_WITH)
