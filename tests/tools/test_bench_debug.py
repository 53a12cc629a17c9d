"""The benchmark of the debugging tools: what it prints, and when it fails."""

from __future__ import annotations

import dataclasses
import json

import bench_debug
import pytest
from bench_debug import TOOLS, Row

ROW = Row(tool="trace", size="tiny", dtype="float32", step_s=0.02, with_tool_s=0.03, ratio=1.5, bound=3.0, spread=0.1,
          same_losses=True)


@pytest.fixture
def measured(monkeypatch):
    """Function: rows as if they had been measured, with changes."""
    def rows(**changes):
        monkeypatch.setattr(bench_debug, "measure", lambda *args: (dataclasses.replace(ROW, **changes), 0.02))

    return rows


def test_seconds_ratio_and_bound_are_printed(measured, capsys):
    measured()
    assert bench_debug.main(["--only", "trace", "--sizes", "tiny", "--dtypes", "float32"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1].split() == ["trace", "tiny", "float32", "0.0200", "0.0300", "1.50", "3.00", "10%"]
    assert said[2] == "quiet: other processes used 0.02 cores meanwhile"


def test_json_has_a_row_for_each_tool_size_and_dtype(measured, capsys):
    measured()
    assert bench_debug.main(["--json", "-"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == len(TOOLS) * 2 * 2


@pytest.mark.parametrize("changes", [{"ratio": 3.1}, {"same_losses": False}])
def test_a_tool_that_costs_too_much_or_changes_the_losses_fails(measured, changes, capsys):
    measured(**changes)
    assert bench_debug.main(["--only", "trace"]) == 1
    assert ("THE LOSSES DIFFER" in capsys.readouterr().out) == (not changes.get("same_losses", True))


@pytest.mark.long
@pytest.mark.parametrize("tool", TOOLS)
def test_a_step_with_a_tool_at_work_has_the_losses_of_the_step(tool, tmp_path, capsys):
    target = tmp_path / "debug.json"
    few = ["--only", tool, "--sizes", "tiny", "--dtypes", "float32", "--rounds", "1"]
    bench_debug.main([*few, "--json", str(target)])
    (row,) = json.loads(target.read_text())["rows"]
    assert row["same_losses"] and row["ratio"] > 0
