"""What a run writes down: metrics.jsonl, the same scalars as TensorBoard events, and model FLOP utilisation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

from mindmodel.checkpoint.run_folder import RunFolder
from mindmodel.errors import CheckpointError
from mindmodel.files import write_text_safely


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
    """All rows; a last line that a killed process left unfinished is dropped."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise CheckpointError(f"{path}, line {number}: not JSON. Mend or remove the file; training goes on.") from error
    return rows


def cut_back(path: Path, step: int) -> None:
    """Drop the rows after a step: the run goes on from its checkpoint and writes them again."""
    rows = read_metrics(path)
    kept = [row for row in rows if row.get("step", 0) <= step]
    if path.exists():
        write_text_safely(path, "".join(json.dumps(row) + "\n" for row in kept))


class Metrics:
    """Appends rows to metrics.jsonl and the events folder. Close it, or use it as a context manager."""

    def __init__(self, run: RunFolder, step: int) -> None:
        # here, not at the top: it takes seconds, and breaks MindSpore's protobuf files when it is loaded before them
        from tensorboardX import SummaryWriter

        cut_back(run.metrics_file, step)
        self._file = open(run.metrics_file, "a", encoding="utf-8")
        self._events = SummaryWriter(str(run.events), purge_step=step + 1 if step else None)

    def describe(self, row: Mapping[str, Any]) -> None:
        """A row that belongs to no step."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """One row, and one event for each scalar."""
        self.describe({"step": step, **scalars})
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush both."""
        self._file.close()
        self._events.close()

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
