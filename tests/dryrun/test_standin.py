"""MindSpore compiles for Ascend where there is neither CANN nor a chip, and what is missing is said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mindmodel.build_cache import BuildError
from mindmodel.cann import TOLD_IN
from mindmodel.dryrun import standin as module
from mindmodel.dryrun.stubs import PLUGIN

NETWORK = """
import time

import numpy as np
import mindspore as ms
from mindspore import Tensor, nn, ops
from mindspore.communication import init


class Product(nn.Cell):
    def __init__(self):
        super().__init__()
        self.matmul, self.reduce = ops.MatMul(), ops.AllReduce()

    def construct(self, x, y):
        return self.reduce(self.matmul(x, y))


ms.set_context(mode=ms.GRAPH_MODE, jit_config={"jit_level": "O0"})
ms.set_device("Ascend")
init()
Product()(Tensor(np.ones((16, 32), np.float32)), Tensor(np.ones((32, 64), np.float32)))
before = time.process_time()
time.sleep(1)
waiting = "idle" if time.process_time() - before < 0.3 else "busy"
print("compiled for", ms.get_context("device_target"), "and", waiting)
"""


@pytest.fixture(autouse=True)
def no_cann(monkeypatch):
    """An environment that knows no toolkit."""
    for name in TOLD_IN:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("ranks, level", [(1, 0), (8, 1)])
def test_mindspore_compiles_for_ascend_with_it_and_is_idle_when_it_has_done_so(ranks, level, standin, tmp_path):
    simulated = {"MS_SIMULATION_LEVEL": str(level), "RANK_SIZE": str(ranks), "RANK_ID": "0"}
    environment = {**os.environ, **module.environment(standin), **simulated}
    (tmp_path / "network.py").write_text(NETWORK)
    done = subprocess.run(
        [sys.executable, "network.py"], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("compiled for Ascend and idle\n")


@pytest.fixture
def installed(monkeypatch, tmp_path, small_package):
    """A small package instead of MindSpore, and a cache of its own."""
    monkeypatch.setattr(module, "package_folder", lambda name: small_package)
    monkeypatch.setenv("MINDMODEL_CACHE", str(tmp_path / "cache"))
    return small_package


@pytest.fixture
def builds(monkeypatch):
    """The folders into which something was built so far."""
    folders, build = [], module._build
    monkeypatch.setattr(module, "_build", lambda mindspore, folder: (folders.append(folder), build(mindspore, folder)))
    return folders


def test_it_is_built_once_in_a_private_folder_of_the_cache(installed, builds, tmp_path):
    assert module.find() is None
    folder = module.find_or_build()
    assert module.find_or_build() == module.find() == folder and len(builds) == 1
    assert folder.parent == tmp_path / "cache" / "cann" and folder.parent.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in folder.iterdir()} == {"cann", "manifest.json"}


def test_the_package_it_is_made_from_is_left_as_it_is(installed):
    before = {path: path.stat().st_mtime_ns for path in installed.rglob("*")}
    module.find_or_build()
    assert {path: path.stat().st_mtime_ns for path in installed.rglob("*")} == before


@pytest.mark.parametrize("name", ["manifest.json", "cann/lib64/libascendcl.so", "cann/compiler/version.info"])
@pytest.mark.parametrize("damage", [None, b"", b"somebody else's"])
def test_a_damaged_one_is_built_again(name, damage, installed, builds):
    folder = module.find_or_build()
    whole = (folder / name).read_bytes()
    if damage is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(damage)
    assert module.find() is None
    assert (module.find_or_build() / name).read_bytes() == whole and len(builds) == 2


def test_it_is_built_again_for_another_plugin_version_or_source(installed, monkeypatch):
    built = [module.find_or_build()]
    with open(installed / "lib" / "plugin" / PLUGIN[0], "ab") as library:
        library.write(b"longer")
    built.append(module.find_or_build())
    monkeypatch.setattr(module, "MINDSPORE", "2.9.1")
    (installed / "version.py").write_text("__version__ = '2.9.1'\n")
    built.append(module.find_or_build())
    monkeypatch.setattr(module, "sha256_of", lambda path: "changed")
    assert len({*built, module.find_or_build()}) == 4


def test_without_a_cache_it_is_built_for_this_process(installed, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINDMODEL_CACHE", str(tmp_path / "file"))
    folder = module.find_or_build()
    assert (folder / "cann" / "lib64" / "libascendcl.so").is_file() and not folder.is_relative_to(tmp_path)


def test_the_environment_puts_it_before_what_the_user_has(monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", "/mine:/more")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    assert module.environment(Path("/cache/cann/0123")) == {
        "LD_LIBRARY_PATH": "/cache/cann/0123/cann/lib64:/mine:/more",
        "LD_PRELOAD": "/cache/cann/0123/cann/lib64/libstandin.so",
        "PYTHONPATH": "/cache/cann/0123/cann/opp/built-in/op_impl/ai_core/tbe",
        "ASCEND_HOME_PATH": "/cache/cann/0123/cann",
        "ASCEND_OPP_PATH": "/cache/cann/0123/cann/opp",
    }


def test_without_mindspore_it_is_refused(monkeypatch):
    monkeypatch.setattr(module, "package_folder", lambda name: None)
    with pytest.raises(BuildError, match="^MindSpore is not installed. Use pip install mindspore==2.9.0$"):
        module.find_or_build()


@pytest.mark.parametrize("text, named", [("__version__ = '2.10.0'\n", "2.10.0"), ("", "of unknown version")])
def test_another_mindspore_is_refused(text, named, installed):
    (installed / "version.py").write_text(text)
    with pytest.raises(BuildError, match=f"not made for MindSpore {named}. Use pip install mindspore==2.9.0"):
        module.find()


def test_a_mindspore_without_the_plugin_is_refused(installed):
    (installed / "lib" / "plugin" / "libd_collective.so").unlink()
    with pytest.raises(BuildError, match="libd_collective.so missing: no MindSpore with Ascend's plugin. Use pip"):
        module.find_or_build()


def test_a_damaged_plugin_is_refused_and_nothing_is_left(installed):
    (installed / "lib" / "plugin" / PLUGIN[0]).write_bytes(b"half")
    with pytest.raises(BuildError, match="libmindspore_ascend.so.2: not a 64-bit shared library"):
        module.find_or_build()
    assert [path.name for path in Path(os.environ["MINDMODEL_CACHE"], "cann").iterdir()] == [".lock"]


def test_another_machine_is_refused(installed, monkeypatch):
    monkeypatch.setattr(module.platform, "machine", lambda: "riscv64")
    with pytest.raises(BuildError, match="made for x86_64 and aarch64, not for riscv64"):
        module.find()


def test_a_missing_compiler_is_said_only_where_one_is_needed(installed, monkeypatch):
    folder = module.find_or_build()
    monkeypatch.setattr(module, "cpp_compiler", lambda: None)
    assert module.find() == module.find_or_build() == folder
    (folder / "manifest.json").unlink()
    for function in (module.find, module.find_or_build):
        with pytest.raises(BuildError, match=r"needs a compiler \(.*\). Use apt-get install g\+\+"):
            function()


def test_a_compiler_that_fails_is_named(installed, monkeypatch):
    monkeypatch.setattr(module, "source", lambda functions: "int nonsense(;\n")
    with pytest.raises(BuildError, match="failed: .*standin.c:1.*error"):
        module.find_or_build()


@pytest.fixture
def toolkit_in(tmp_path):
    """Function: a folder that looks like CANN, at a path below a root."""

    def make(path: str) -> Path:
        folder = tmp_path / "root" / path
        (folder / "lib64").mkdir(parents=True)
        (folder / "lib64" / "libascendcl.so").write_bytes(b"")
        return folder

    return make


def test_the_stand_in_is_not_taken_for_cann(installed, tmp_path, monkeypatch):
    folder = module.find_or_build()
    monkeypatch.setenv("ASCEND_HOME_PATH", module.environment(folder)["ASCEND_HOME_PATH"])
    assert module.real_cann(tmp_path / "root") is None


def test_where_cann_is_the_environment_stays_as_it_is(toolkit_in, monkeypatch):
    monkeypatch.setenv("ASCEND_HOME_PATH", str(toolkit_in("opt/cann")))
    assert module.toolkit() == {}


def test_where_cann_is_not_the_stand_in_is_built_and_its_environment_used(installed, builds, monkeypatch):
    monkeypatch.setattr(module, "real_cann", lambda: None)
    assert module.toolkit() == module.environment(module.find()) and len(builds) == 1


@pytest.mark.parametrize("path, script", [("cann", "cann/set_env.sh"), ("toolkit/latest", "toolkit/set_env.sh")])
def test_cann_that_the_environment_does_not_know_must_be_entered_first(path, script, toolkit_in, monkeypatch, tmp_path):
    real = toolkit_in(path)
    (tmp_path / "root" / script).write_text("")
    monkeypatch.setattr(module, "real_cann", lambda: real)
    with pytest.raises(BuildError, match=f"installed here, but not in this environment. Use source .*/root/{script}$"):
        module.toolkit()
