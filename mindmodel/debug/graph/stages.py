"""The readable graphs that MindSpore saves while it compiles: stage by stage, each node with its calls in Python."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from mindmodel.debug.graph.sources import Source, read_sources

PARSED, OPTIMIZED, KERNELS = "1_parsed", "2_optimized", "3_kernels"
STAGES = {"type_inference": PARSED, "backend_pass": OPTIMIZED, "graph_build": KERNELS}
"""MindSpore's name and ours: before automatic differentiation, before the device has a say, and with its kernels."""
FILE = re.compile(rf"(?:\d+_)?({'|'.join(STAGES)})_\d+(?:_\d+)?\.ir")


@contextmanager
def saved_stages(folder: Path) -> Iterator[None]:
    """MindSpore writes the stages into a folder while the block runs."""
    wanted = {
        "MS_DEV_SAVE_GRAPHS": "1",
        "MS_DEV_SAVE_GRAPHS_PATH": str(folder),
        "MS_DEV_DUMP_IR_PASSES": ",".join(STAGES),
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _files(folder: Path) -> dict[str, Path]:
    """The saved stages by our names; the first compilation's, if there were two."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.ir"), key=lambda path: path.stat().st_mtime_ns):
        if match := FILE.fullmatch(path.name):
            found.setdefault(STAGES[match[1]], path)
    return found


def read_stages(folder: Path) -> dict[str, str]:
    """The text of each stage that MindSpore saved in a folder, by our names, in their order."""
    return {stage: path.read_text(errors="replace") for stage, path in sorted(_files(folder).items())}


def read_stage_sources(folder: Path, stage: str = OPTIMIZED) -> dict[str, Source]:
    """The line of Python of each node of a saved stage, by the node's scope."""
    path = _files(folder).get(stage)
    return read_sources(path) if path else {}
