"""The command as a user starts it, on a very small recipe, and disks that are small."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from command import Command, fill_with_corpus


@pytest.fixture
def command(tmp_path) -> Command:
    """In a folder of the test's own."""
    fill_with_corpus(tmp_path)
    return Command(tmp_path)


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


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a disk of so many KiB; gives its folder."""
    mounted = []

    def mount(size_kib: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        try:
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", folder], check=True, capture_output=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"a tmpfs cannot be mounted here: {error}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)
