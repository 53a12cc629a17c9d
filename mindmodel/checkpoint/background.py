"""Saving beside the training: the loop stops while numbers are copied to host memory, and a thread writes them."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Callable, Optional

import numpy as np

from mindmodel.checkpoint.part import PlannedPart
from mindmodel.tensor_file import LazyTensor, Tensor


class HostMemory:
    """Room for one copy of what a rank writes; made by the first copy, used again by the next.

    The training's own arrays and this copy are the two buffers: while one is written the other changes.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def copy(self, planned: PlannedPart) -> PlannedPart:
        """The same part, of numbers that stay as they are until the next copy."""
        files = {
            file: {name: (piece, self._copy(name, numbers)) for name, (piece, numbers) in content.items()}
            for file, content in planned.files.items()
        }
        return dataclasses.replace(planned, files=files)

    def _copy(self, name: str, numbers: Tensor) -> np.ndarray:
        array = numbers.read() if isinstance(numbers, LazyTensor) else numbers
        kept = self._arrays.get(name)
        if kept is None or (kept.shape, kept.dtype) != (array.shape, array.dtype):
            kept = self._arrays[name] = np.empty(array.shape, array.dtype)
        np.copyto(kept, array)
        return kept


class BackgroundWriter:
    """One thread that writes one thing after another.

    An error of the thread is raised by the next call of any method: nothing is written any more then.
    """

    def __init__(self) -> None:
        self._thread: Optional[threading.Thread] = None
        self._done: list[Path] = []
        self._error: Optional[BaseException] = None

    def start(self, write: Callable[[], Path]) -> None:
        """Write beside the caller, who must have waited for what was written before."""
        assert self._thread is None
        self._thread = threading.Thread(target=self._run, args=(write,), name="checkpoint", daemon=True)
        self._thread.start()

    def _run(self, write: Callable[[], Path]) -> None:
        try:
            path = write()
            self._done.append(path)  # only now: `finished` takes the list away
        except BaseException as error:  # whatever it is, the loop must hear of it
            self._error = error

    def finished(self) -> list[Path]:
        """What has been written since this was last asked; does not wait."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()
        self._raise()
        done, self._done = self._done, []
        return done

    def wait(self) -> None:
        """Until the thread has nothing to write."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._raise()

    def settle(self) -> None:
        """As wait, where something else has gone wrong already: an error of the thread is not raised."""
        if self._thread is not None:
            self._thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
