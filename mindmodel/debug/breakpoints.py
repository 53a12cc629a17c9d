"""Python's debugger in a Cell, and the line at which a step failed. For PyNative mode, where Python runs the Cells.

Imports no mindspore.
"""

from __future__ import annotations

import linecache
import pdb
import sys
import traceback
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import TYPE_CHECKING, Any, Callable, Iterator, Optional

from mindmodel.errors import GraphError, TrainingError, first_line
from mindmodel.machine import package_folder
from mindmodel.recipe.values import nearest

if TYPE_CHECKING:
    from mindspore import nn

LEFT = 130
"""Exit code of a command that the user has left from the debugger."""


def places(network: "nn.Cell") -> dict[str, "nn.Cell"]:
    """The Cells of a network by their path, such as `layers.0.attention`, `norm` and `loss`."""
    named = {name.removeprefix("decoder").removeprefix("."): cell for name, cell in network.cells_and_names()}
    return {name: cell for name, cell in named.items() if name}


def break_at(network: "nn.Cell", place: str) -> None:
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


@contextmanager
def failure_named(step: int) -> Iterator[None]:
    """A block that makes a step: what an operator, or Python in a construct, raises becomes one message with the line.

    Raises:
        TrainingError: as that message.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise TrainingError(
            f"step {step}: {type(error).__name__}: {first_line(error)}. {_failing_line(error)}. The same command with "
            "--debug shows all calls."
        ) from error


def _failing_line(error: BaseException) -> str:
    """The innermost line outside of MindSpore: `file:line, in function: code`."""
    mindspore, frames = str(package_folder("mindspore")), traceback.extract_tb(error.__traceback__)
    frame = [frame for frame in frames if not frame.filename.startswith(mindspore)][-1]
    code = linecache.getline(frame.filename, frame.lineno or 0).strip()
    return f"{frame.filename}:{frame.lineno}, in {frame.name}: {code}"
