"""Python's debugger in a Cell, and the line at which a step failed. For PyNative mode, where Python runs the Cells."""

from __future__ import annotations

import linecache
import pdb
import sys
import traceback
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any, Callable, Optional

import mindspore
from mindspore import nn

from mindmodel.errors import GraphError
from mindmodel.recipe.values import nearest

MINDSPORE = str(Path(mindspore.__file__).parent)


def places(network: nn.Cell) -> dict[str, nn.Cell]:
    """The Cells of a network by their path, such as `layers.0.attention`, `norm` and `loss`."""
    named = {name.removeprefix("decoder").removeprefix("."): cell for name, cell in network.cells_and_names()}
    return {name: cell for name, cell in named.items() if name}


def break_at(network: nn.Cell, place: str) -> None:
    """Open Python's debugger on the first line of a Cell's construct, every time that it is called.

    Args:
        place: path of the Cell, as in `places`.

    Raises:
        GraphError: if there is none.
    """
    cells = places(network)
    if place not in cells:
        hint = nearest(place, tuple(cells)) or f" There are {', '.join(name for name in cells if '.' not in name)}."
        raise GraphError(f"--break {place}: the model has no such Cell.{hint}")
    cells[place].construct = _debugged(cells[place].construct)


class _Debugger(pdb.Pdb):
    """Stops on the first line of what is called after `set_trace`, with all its callers on the stack."""

    def __init__(self) -> None:
        super().__init__(skip=[__name__])
        self._entering = False

    def set_trace(self, frame: Optional[FrameType] = None) -> None:
        self._entering = True
        super().set_trace(frame)

    def user_call(self, frame: FrameType, argument_list: None) -> None:
        if not self._entering:
            super().user_call(frame, argument_list)
        self._entering = False


def _debugged(construct: Callable) -> Callable:
    debugger = _Debugger()

    @wraps(construct)
    def stopping(*inputs: Any) -> Any:
        debugger.set_trace(sys._getframe())
        return construct(*inputs)

    return stopping


def failing_line(error: BaseException) -> str:
    """The innermost line outside of MindSpore that an error comes from: `file:line, in function: code`."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(MINDSPORE)]
    frame = frames[-1]
    code = linecache.getline(frame.filename, frame.lineno or 0).strip()
    return f"{frame.filename}:{frame.lineno}, in {frame.name}: {code}"
