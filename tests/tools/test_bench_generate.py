"""The benchmark of generation: what counts as equal, and what it prints."""

from __future__ import annotations

import json

import bench_generate
import pytest
from bench_generate import Row


def test_tokens_after_the_first_difference_do_not_count_as_equal():
    assert bench_generate.equal_tokens([[1, 2, 3], [4, 5, 6]], [[1, 9, 3], [4, 5, 6]]) == 4


@pytest.fixture
def measured(monkeypatch):
    """Rows as if they had been measured."""
    monkeypatch.setattr(bench_generate.subprocess, "run", lambda *args, **keys: None)
    speeds = {"mindmodel": 300.0, "torch-eager": 100.0}

    def measure(size, batch, weights, args):
        rows = [Row(size=size, rival=name, batch=batch, tokens_s=speed, spread=0.1) for name, speed in speeds.items()]
        return rows, 3.0, 128 * batch, 0.02

    monkeypatch.setattr(bench_generate, "measure", measure)


def test_speed_ratio_and_agreement_are_printed(measured, capsys):
    assert bench_generate.main(["--sizes", "tiny", "--batches", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["mindmodel", "tiny", "8", "300", "10%"]
    assert lines[3] == "mindmodel is 3.00 times as fast; 1024 of 1024 tokens are equal"
    assert lines[4] == "quiet: other processes used 0.02 cores meanwhile"


def test_json_has_a_row_for_each_size_batch_and_rival(measured, capsys):
    assert bench_generate.main(["--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 2 * 2 * 2
    assert rows[0] == {"size": "tiny", "rival": "mindmodel", "batch": 1, "tokens_s": 300.0, "spread": 0.1}


@pytest.mark.long
def test_both_give_the_same_tokens(tmp_path, capsys):
    target = tmp_path / "tokens.json"
    assert bench_generate.main(["--sizes", "tiny", "--batches", "2", "--rounds", "2", "--json", str(target)]) == 0
    assert "256 of 256 tokens are equal" in capsys.readouterr().out
    assert all(row["tokens_s"] > 0 for row in json.loads(target.read_text())["rows"])
