"""The command itself."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mindmodel import __version__
from mindmodel.cli import main as command
from mindmodel.cli.main import VERBS, main
from mindmodel.errors import RecipeError, TrainingError

HEAVY = ("mindspore", "mindformers", "torch", "transformers")
ROOT = Path(__file__).parents[2]
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def heavy_modules_after(code: str, heavy: tuple[str, ...] = HEAVY) -> list[str]:
    """Those of `heavy` that a fresh interpreter has loaded after running the code."""
    script = f"import sys\n{code}\nprint('loaded', *(name for name in {heavy!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()[1:]


def test_the_overview_loads_no_numpy_and_reads_no_recipe():
    code = "from mindmodel.cli.main import main\nmain(['--help'])"
    assert heavy_modules_after(code, (*HEAVY, "numpy", "yaml")) == []


@pytest.fixture
def raising(monkeypatch):
    """A verb that fails in a way of the test's choice."""

    def install(error):
        class Verb:
            __doc__ = "A verb."

            @staticmethod
            def add_arguments(parser):
                pass

            @staticmethod
            def run(args):
                raise error

        monkeypatch.setattr(command.importlib, "import_module", lambda name: Verb)

    return install


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_names_every_verb(arguments, capsys):
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown for verb in VERBS)
    assert "first:  mindmodel train recipes/cpu/tiny.yaml" in shown


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version_is_printed(flag, capsys):
    assert main([flag]) == 0
    assert capsys.readouterr().out == f"mindmodel {__version__}\n"


def test_an_unknown_verb_is_bad_input(capsys):
    assert main(["trian"]) == 2
    assert "'trian' is no verb. Did you mean 'train'?" in capsys.readouterr().err
    assert main(["xyz"]) == 2
    assert "'xyz' is no verb. Use one of: train, " in capsys.readouterr().err


def test_a_package_that_is_missing_is_named(raising, capsys):
    raising(ModuleNotFoundError("No module named 'yaml'", name="yaml"))
    assert main(["recipe"]) == 2
    assert capsys.readouterr().err == "mindmodel: the package 'yaml' is missing. Use pip install -e . in its folder.\n"
    with pytest.raises(ModuleNotFoundError):
        main(["recipe", "--debug"])


def test_an_older_python_is_told_which_one_is_needed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(SystemExit) as left:
        runpy.run_module("mindmodel")
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("mindmodel: Python 3.10 to 3.12 is needed, this is ")


@pytest.mark.parametrize("arguments", [[], ["launch", "--help"], ["checkpoint", "verify", "--help"]])
def test_prose_keeps_to_the_width_of_the_terminal_and_examples_stay_whole(arguments, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "64")
    with contextlib.suppress(SystemExit):
        main(arguments)
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 64 or "  mindmodel launch " in line for line in lines)
    assert len(lines) > 6


def test_what_must_be_given_is_asked_for_and_no_more(capsys):
    with pytest.raises(SystemExit):
        main(["train"])
    assert capsys.readouterr().err.endswith("required: RECIPE\n")


COMMAND = f"{shlex.quote(sys.executable)} -m mindmodel"


@pytest.mark.parametrize(
    "line, code, said",
    [
        ("{} --help | true; exit ${{PIPESTATUS[0]}}", 0, ""),
        ("{} recipe --help | true; exit ${{PIPESTATUS[0]}}", 0, ""),
        ("{} --version > /dev/full", 2, "OSError: [Errno 28] No space left on device\n"),
        ("{} --version <&- >&- 2>&-", 0, ""),
    ],
    ids=["gone", "gone at a verb's help", "full", "closed"],
)
def test_an_output_that_nobody_takes_is_no_traceback(line, code, said):
    done = subprocess.run(
        ["bash", "-c", line.format(COMMAND)], cwd=ROOT, env=BUFFERED, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (code, said)


def test_a_file_never_gets_the_number_of_a_stream_that_was_closed():
    script = "import os; from mindmodel.cli.main import main; main(['--help']); print(os.open('/', os.O_RDONLY))"
    line = f"{shlex.quote(sys.executable)} -c {shlex.quote(script)} <&- 2>&-"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert int(done.stdout.splitlines()[-1]) > 2


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "mindmodel", "nonsense"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "error, code", [(RecipeError("no"), 2), (OSError("no"), 2), (TrainingError("no"), 3), (KeyboardInterrupt(), 130)]
)
def test_errors_become_exit_codes(raising, capsys, error, code):
    raising(error)
    assert main(["recipe"]) == code
    if code != 130:
        assert capsys.readouterr().err == f"{type(error).__name__}: no\n"


@pytest.mark.parametrize(
    "error, line",
    [
        (RuntimeError("\nMalloc for kernel output failed.\n\n---\n- C++ Call"), "Malloc for kernel output failed"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_failure_of_the_framework_is_one_line_and_the_way_to_all_of_it(raising, capsys, error, line):
    raising(error)
    assert main(["recipe"]) == 3
    message = f"TrainingError: MindSpore failed: {line}. The same command with --debug shows all.\n"
    assert capsys.readouterr().err == message
    with pytest.raises(type(error)):
        main(["recipe", "--debug"])


def test_what_the_output_cannot_encode_is_escaped(tmp_path, monkeypatch):
    (tmp_path / "é.yaml").write_text((ROOT / "recipes" / "cpu" / "tiny.yaml").read_text())
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main(["recipe", str(tmp_path / "é.yaml")]) == 0
    sys.stdout.flush()
    assert written.getvalue().startswith(b"name: \\xe9\n")


def test_debug_shows_the_traceback(raising):
    raising(RecipeError("no"))
    with pytest.raises(RecipeError, match="no"):
        main(["recipe", "--debug"])


@pytest.mark.parametrize("verb", ["recipe", "doctor"])
def test_help_shows_an_example(verb, capsys):
    with pytest.raises(SystemExit) as left:
        main([verb, "--help"])
    assert left.value.code == 0
    assert f"example:  mindmodel {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "code",
    [
        "import mindmodel",
        "from mindmodel.cli.main import main; main(['--help'])",
        "from mindmodel.cli.main import main; main(['recipe', 'recipes/llama/8b.yaml', '--single', '--shrink'])",
        "import mindmodel.machine, mindmodel.cli.doctor",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code):
    assert heavy_modules_after(code) == []
