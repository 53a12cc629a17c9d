"""A run put into memory, to make steps of it. Imports no mindspore before that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mindmodel.parallel.loading import load_runtime
from mindmodel.terminal import Terminal
from mindmodel.train.run import OpenedRun

if TYPE_CHECKING:
    from mindmodel.train.stepping import Stepping


def in_memory(opened: OpenedRun, terminal: Terminal) -> "Stepping":
    """Load MindSpore and make the run stand in memory at its checkpoint, or at its beginning."""
    runtime = load_runtime(opened.recipe, "train", terminal)
    from mindmodel.train.stepping import Stepping

    checkpoint = opened.position.checkpoint
    terminal.say(f"machine: {runtime.device}, {runtime.threads} threads, {runtime.kernels}")
    terminal.say(f"weights: {checkpoint.path if checkpoint else opened.recipe.train.init_from or 'fresh'}")
    return Stepping(opened, runtime, terminal)
