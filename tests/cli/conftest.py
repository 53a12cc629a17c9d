"""The command as a user starts it, on a very small recipe, and disks that are small."""

from __future__ import annotations

import pytest

from command import DEMO, Command, fill_with_corpus


@pytest.fixture
def command(tmp_path) -> Command:
    """In a folder of the test's own."""
    fill_with_corpus(tmp_path)
    return Command(tmp_path)


@pytest.fixture
def path(tmp_path, monkeypatch) -> str:
    """Of a recipe that is alone in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.yaml").write_text(DEMO)
    return "demo.yaml"


@pytest.fixture(scope="session")
def finished(tmp_path_factory, cache_of_the_tests):
    """The command of a folder in which `run` was trained without interruption, and what that printed."""
    folder = tmp_path_factory.mktemp("a folder with spaces")
    fill_with_corpus(folder)
    command = Command(folder)
    done = command.train("run")
    assert done.returncode == 0, done.stderr
    command.printed = done.stdout
    return command
