"""mindmodel doctor."""

from __future__ import annotations

import fcntl
import json
from importlib import metadata
from pathlib import Path

import pytest

from mindmodel.cli import doctor
from mindmodel.cli.doctor import ABSENT, BROKEN, DIFFERS, OK, Check
from mindmodel.cli.main import main


@pytest.fixture
def quick(monkeypatch):
    """No import of MindSpore."""
    monkeypatch.setattr(doctor, "import_mindspore", lambda: Check("import", OK, "mindspore 2.9.0 in 1.0 s"))


def test_the_list_fits_a_terminal_and_ends_with_a_verdict(quick, capsys):
    code = main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1].startswith("Training on CPU: can")
    assert code == (0 if "can run" in lines[-1] else 1)


def test_json_is_one_object(quick, capsys):
    main(["doctor", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"can_train", "checks"}
    names = [check["name"] for check in told["checks"]]
    expected = "python", "mindspore", "cores", "memory", "cpu", "c++ compiler", "ascend", "ascend toolkit", "import"
    assert set(expected) <= set(names)


def test_something_broken_means_exit_code_1(quick, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "memory", lambda: Check("memory", BROKEN, "too little"))
    assert main(["doctor"]) == 1
    assert "Training on CPU: cannot run; mend what is broken above." in capsys.readouterr().out


@pytest.mark.parametrize("version, state", [((3, 9), BROKEN), ((3, 10), OK), ((3, 12), OK), ((3, 13), BROKEN)])
def test_python_must_be_one_that_mindspore_comes_for(version, state):
    assert doctor.python_version(version).state == state


def test_a_package_that_training_needs_is_broken_when_it_is_missing(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "version", missing)
    assert doctor.package("mindspore", "2.9.0") == Check(
        "mindspore", BROKEN, "needed by: train, generate, eval. Use pip install mindspore==2.9.0"
    )
    assert doctor.package("decorator", None).state == ABSENT
    assert "tests only" in doctor.package("torch", "2.13.0").detail


def test_another_version_is_told_and_not_refused(monkeypatch):
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "2.8.0")
    check = doctor.package("mindspore", "2.9.0")
    assert check == Check("mindspore", DIFFERS, "2.8.0, and only 2.9.0 is tested. Use pip install mindspore==2.9.0")


def test_a_build_tag_is_no_other_version(monkeypatch):
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "2.13.0+cpu")
    assert doctor.package("torch", "2.13.0").state == OK


def test_pins_come_from_the_installed_metadata(monkeypatch):
    requires = ["mindspore==2.9.0", "numpy", "pytest; extra == 'test'", 'torch==2.13.0; extra == "test"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: requires)
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "2.9.0")
    assert [check.name for check in doctor.packages()] == ["mindspore", "numpy", "torch"]


def test_mindmodel_itself_must_be_installed(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "requires", missing)
    assert list(doctor.packages()) == [Check("mindmodel", BROKEN, "not installed. Use pip install -e . in its folder")]


def test_an_import_that_fails_or_hangs_is_told(monkeypatch, tmp_path):
    fake = tmp_path / "mindspore.py"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    fake.write_text("__version__ = '9.9'\n")
    assert doctor.import_mindspore().detail.startswith("mindspore 9.9 in ")
    fake.write_text("raise ImportError('libgomp.so.1 is missing')\n")
    failed = doctor.import_mindspore()
    assert (failed.state, "libgomp.so.1 is missing" in failed.detail) == (BROKEN, True)
    fake.write_text("import time; time.sleep(60)\n")
    assert doctor.import_mindspore(limit_s=0.2).detail.startswith("mindspore is not loaded after 0.2 s")


def test_a_folder_that_is_not_there_yet_is_judged_by_the_one_above(tmp_path):
    check = doctor.folder("cache folder", tmp_path / "a" / "b")
    assert check.state == OK and not (tmp_path / "a").exists()


def test_a_folder_that_cannot_be_written_is_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert doctor.folder("cache folder", tmp_path).detail.endswith("Set MINDMODEL_CACHE to another folder")
    assert doctor.folder("working folder", Path(tmp_path)).state == BROKEN


def test_little_disk_or_memory_is_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "MIN_DISK_BYTES", 1 << 62)
    assert doctor.folder("working folder", tmp_path).state == BROKEN
    monkeypatch.setattr(doctor, "MIN_MEMORY_BYTES", 1 << 62)
    assert doctor.memory().state == BROKEN


def test_what_is_absent_tells_which_verb_needs_it(monkeypatch):
    monkeypatch.setattr(doctor.machine, "cpp_compiler", lambda: None)
    monkeypatch.setattr(doctor.machine, "ascend_devices", lambda: 0)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert "needed by: native CPU kernels" in doctor.compiler().detail
    assert "needed by: training on NPUs" in doctor.ascend().detail


@pytest.fixture
def no_cann(monkeypatch):
    """A machine without CANN, whatever this one has."""
    monkeypatch.setattr(doctor.cann, "real_cann", lambda: None)


def test_without_cann_the_stand_in_is_told_and_not_built(no_cann, monkeypatch):
    monkeypatch.setattr(doctor.standin, "find", lambda: None)
    told = "no CANN; what stands in for it in dry runs is "
    assert doctor.ascend_toolkit() == Check("ascend toolkit", OK, f"{told}built at first use")
    monkeypatch.setattr(doctor.standin, "find", lambda: Path("/cache/cann/0123"))
    assert doctor.ascend_toolkit() == Check("ascend toolkit", OK, f"{told}/cache/cann/0123")


def test_without_cann_and_what_the_stand_in_needs_it_is_told_what_to_install(no_cann, monkeypatch):
    monkeypatch.setattr(doctor.standin, "package_folder", lambda name: None)
    check = doctor.ascend_toolkit()
    assert check.state == ABSENT
    assert check.detail.endswith("No CANN, and MindSpore is not installed. Use pip install mindspore==2.9.0")


@pytest.fixture
def cann_of(tmp_path, monkeypatch):
    """Function: CANN of a version is installed and entered; gives its folder."""

    def install(version: str) -> Path:
        (tmp_path / "compiler").mkdir(exist_ok=True)
        (tmp_path / "compiler" / "version.info").write_text(f"Version={version}\n")
        monkeypatch.setattr(doctor.cann, "real_cann", lambda: tmp_path)
        monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
        return tmp_path

    return install


def test_cann_is_told_with_its_version(cann_of):
    folder = cann_of("9.0.0.1")
    assert doctor.ascend_toolkit() == Check("ascend toolkit", OK, f"CANN 9.0.0.1 at {folder}")


def test_cann_that_mindspore_does_not_take_is_told_with_what_to_install(cann_of):
    folder = cann_of("8.1.RC1")
    assert doctor.ascend_toolkit() == Check(
        "ascend toolkit", DIFFERS,
        f"CANN 8.1.RC1 at {folder}, but MindSpore 2.9.0 takes CANN 8.2, 8.3, 8.5 or 9.0. "
        "Install CANN 9.0.0, toolkit and operators of your chip, then source its set_env.sh",
    )


def test_cann_that_does_not_tell_its_version_is_not_taken_for_the_right_one(cann_of):
    folder = cann_of("9.0.0")
    (folder / "compiler" / "version.info").unlink()
    check = doctor.ascend_toolkit()
    assert check.state == DIFFERS
    assert check.detail.startswith(f"CANN of unknown version at {folder}, but {folder}/compiler/version.info does not")


def test_cann_outside_of_this_environment_is_told_with_how_to_enter_it(cann_of, monkeypatch):
    folder = cann_of("9.0.0")
    monkeypatch.delenv("ASCEND_HOME_PATH")
    check = doctor.ascend_toolkit()
    assert check.state == DIFFERS
    assert check.detail.endswith(f"but it is not in this environment. Use source {folder.parent / 'set_env.sh'}")


def test_the_cache_of_compiled_things_can_be_cleared(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINDMODEL_CACHE", str(tmp_path))
    built = "kernels/one/library.so", "cann/one/cann/lib64/library.so"
    for name in (*built, "graphs/idle/kernel.so", "graphs/held/kernel.so", "mine.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("12345")
    with open(tmp_path / "graphs" / "held" / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["doctor", "--clear-cache"]) == 1
    printed = capsys.readouterr().out
    assert "held: in use by a running mindmodel" in printed and f"removed {tmp_path / 'kernels'}, 5 B" in printed
    assert f"removed {tmp_path / 'cann'}, 5 B" in printed
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"graphs/held/kernel.so", "graphs/held/.lock", "mine.txt"}
    assert main(["doctor", "--clear-cache"]) == 0
    assert main(["doctor", "--clear-cache"]) == 0
    assert "holds nothing that was built or compiled" in capsys.readouterr().out and (tmp_path / "mine.txt").exists()
