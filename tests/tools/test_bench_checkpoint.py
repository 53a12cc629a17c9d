"""The benchmark of checkpoints: what is compared with what, and what it prints."""

from __future__ import annotations

import json

import bench_checkpoint
import pytest

SECONDS = {"write_sequential": 2.0, "write_mindmodel": 2.5, "block_copy": 0.2, "block_mindmodel": 0.25}


@pytest.fixture
def measured(monkeypatch):
    """Processes as if they had run."""
    done = []

    def measure(method, folder, num_bytes, cold):
        done.append(method)
        return {"seconds": SECONDS.get(method, 1.0 + cold), "peak_bytes": 3 * 2**20}

    monkeypatch.setattr(bench_checkpoint, "measure", measure)
    monkeypatch.setattr(bench_checkpoint, "DP", 2)
    return done


def test_speeds_are_printed_as_shares_of_plain_files_and_of_a_plain_copy(measured, capsys):
    assert bench_checkpoint.main(["--gib", "1", "--rounds", "2"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["write_mindmodel", "0.43", "0.80", "0%", "3"] in lines and ["read_mindspore", "cold"] == lines[8][:2]
    assert ["block_mindmodel", "4.29", "0.80", "0%", "3"] in lines
    assert "the loop is held up for 10.0% of the time" in " ".join(lines[-3])
    assert "index of 70B on 8,192 ranks, shard_optimizer=none:" in " ".join(lines[-2])
    assert measured.index("write_torch") < measured.index("read_torch")


def test_json_has_all_rows(measured, capsys):
    assert bench_checkpoint.main(["--rounds", "1", "--json", "-"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in content["rows"]] == [method for method, _ in bench_checkpoint.jobs()]


def test_each_of_our_measurements_runs_and_a_failed_one_is_told(tmp_path):
    for method in ("write_sequential", "write_mindmodel", "read_sequential", "read_mindmodel", "read_verified"):
        assert bench_checkpoint.measure(method, tmp_path, 2**20, cold=True)["seconds"] > 0
    assert bench_checkpoint.measure("block_mindmodel", tmp_path, 2**20, cold=False)["seconds"] > 0
    with pytest.raises(bench_checkpoint.ChildFailed, match="KeyError: 'none'"):
        bench_checkpoint.measure("none", tmp_path, 1, cold=False)
