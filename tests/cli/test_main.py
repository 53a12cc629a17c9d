"""The command itself."""

from __future__ import annotations

import io
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


def heavy_modules_after(code: str) -> list[str]:
    """Those of HEAVY that a fresh interpreter has loaded after running the code."""
    script = f"import sys\n{code}\nprint('loaded', *(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()[1:]


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
    assert "'trian' is no verb. Use one of: train, " in capsys.readouterr().err


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
