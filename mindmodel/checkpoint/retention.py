"""Which checkpoints stay, and how one goes: never while somebody reads it."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from pathlib import Path
from typing import Mapping, Optional

from mindmodel.files import sync_folder

STEP_NAME = re.compile(r"step_(0|[1-9]\d*)")
LEFTOVER_NAME = re.compile(r"\.step_\d+(\.\w+)?\.(tmp|old)")


def list_checkpoints(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, ascending. Temporary folders have other names."""
    if not folder.is_dir():
        return []
    matches = (STEP_NAME.fullmatch(path.name) for path in folder.iterdir() if path.is_dir())
    return sorted(int(match[1]) for match in matches if match)


class Hold:
    """A mark on a checkpoint's folder: it is not removed while the mark is there. Ends with `release` or the object."""

    def __init__(self, path: Path) -> None:
        self._descriptor: Optional[int] = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:  # being removed just now, or a file system without locks: the files say whether they are there
            pass

    def release(self) -> None:
        """Let the folder go."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        self.release()


def remove_leftovers(folder: Path) -> None:
    """What a killed job left: folders half-written or half-removed.

    A process of it that is not dead may still write there: then something stays until the next time.
    """
    for path in folder.iterdir():
        if LEFTOVER_NAME.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def retain(folder: Path, step: int, keep: int, keep_every: int, losses: Mapping[int, float]) -> None:
    """Remove what is not wanted. Later steps do not count: they are damaged, since the run went on from before them.

    Args:
        step: that was just saved.
        losses: held-out losses by step, of which the checkpoint with the lowest is spared.
    """
    earlier = [number for number in list_checkpoints(folder) if number <= step]
    best = min((number for number in earlier if number in losses), key=losses.__getitem__, default=None)
    for number in earlier[:-keep]:
        if number != best and not (keep_every and number % keep_every == 0):
            _remove(folder / f"step_{number}")
    sync_folder(folder)


def _remove(path: Path) -> None:
    """Unless it is held: then the next save tries again."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError:  # a file system without locks
            pass
        old = path.with_name(f".{path.name}.old")
        os.rename(path, old)
        shutil.rmtree(old)
    finally:
        os.close(descriptor)
