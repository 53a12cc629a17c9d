"""What a run writes down: metrics.jsonl, the same scalars as TensorBoard events, and model FLOP utilisation."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, NoReturn, Optional

from mindmodel.checkpoint.run_folder import RunFolder
from mindmodel.errors import CheckpointError
from mindmodel.files import write_text_safely
from mindmodel.train.events import EventFile


@dataclass(frozen=True, kw_only=True)
class Utilisation:
    """Model FLOP utilisation: FLOP per token times tokens per second over a peak that is named."""

    flop_per_token: float
    formula: str
    peak_flops: float
    peak_name: str

    def mfu(self, tokens_s: float) -> float:
        """Share of the peak, 0..1."""
        return self.flop_per_token * tokens_s / self.peak_flops

    def row(self) -> dict[str, Any]:
        """The first row of metrics.jsonl."""
        return {
            "mfu_formula": self.formula,
            "flop_per_token": self.flop_per_token,
            "peak_flops": self.peak_flops,
            "peak": self.peak_name,
        }


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All rows; a last line that a killed process left unfinished is dropped.

    Raises:
        CheckpointError: if another line is not a JSON object, or its step is no number.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [_row(line, f"{path}, line {number}") for number, line in enumerate(lines[:-1], 1)]


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or not isinstance(row.get("step", 0), int):
        raise CheckpointError(f"{where}: not a row of metrics. Mend or remove the file: no checkpoint needs it.")
    return row


def cut_back(path: Path, step: int) -> None:
    """Drop the rows after a step: the run goes on from its checkpoint and writes them again."""
    rows = read_metrics(path)
    if path.exists():
        write_text_safely(path, "".join(json.dumps(row) + "\n" for row in rows if row.get("step", 0) <= step))


class Metrics:
    """Appends rows to metrics.jsonl and the events folder. Close it, or use it as a context manager.

    Args:
        run: the run's folder.
        step: of the checkpoint that the run goes on from; later rows are dropped.

    Raises:
        CheckpointError: if the rows cannot be read or written, as on a full disk; from `describe` and `write` too.
    """

    def __init__(self, run: RunFolder, step: int) -> None:
        self._path = run.metrics_file
        try:
            cut_back(run.metrics_file, step)
            self._file = open(run.metrics_file, "ab", buffering=0)
            self._events = EventFile(run.events, step + 1)
        except OSError as error:
            self._refuse(error)

    def _refuse(self, error: OSError) -> NoReturn:
        free = shutil.disk_usage(self._path.parent).free
        raise CheckpointError(
            f"{self._path} and events: could not be written: {error.strerror}; {free:,} bytes are free. The "
            "checkpoints are untouched: make room and start again, or choose another runtime.output."
        ) from error

    def describe(self, row: Mapping[str, Any]) -> None:
        """A row that belongs to no step."""
        try:
            line = json.dumps(row).encode() + b"\n"
            while line:  # unbuffered: on a disk that is nearly full a part is taken, and the next attempt fails
                line = line[self._file.write(line) :]
        except OSError as error:
            self._refuse(error)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """One row, and one event of all scalars. One that is not finite is null in the row, and not in the event."""
        finite = {name: value for name, value in scalars.items() if math.isfinite(value)}
        self.describe({"step": step, **dict.fromkeys(scalars), **finite})
        try:
            self._events.add(step, finite)
        except OSError as error:
            self._refuse(error)

    def close(self) -> None:
        """Close both files."""
        self._file.close()
        try:
            self._events.close()
        except OSError as error:
            self._refuse(error)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind: Optional[type[BaseException]], *_: Any) -> None:
        try:
            self.close()
        except CheckpointError:
            if kind is None:  # else the disk is full, and that has been said
                raise


class NoMetrics:
    """The metrics of a rank that is not the first."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Nothing is written."""
