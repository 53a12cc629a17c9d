"""The benchmark of checkpoints: what is compared with what, and what it prints."""

from __future__ import annotations

import json
import re

import bench_checkpoint
import pytest

SECONDS = {"write_sequential": 2.0, "write_mindmodel": 2.5, "block_copy": 0.2, "block_mindmodel": 0.25}


@pytest.fixture
def measured(monkeypatch):
    """Processes as if they had run."""
    done = []

    def measure(method, folder, num_bytes):
        done.append(method)
        return {"seconds": SECONDS.get(method, 2.0), "warm_seconds": 1.0, "peak_bytes": 3 * 2**20}

    monkeypatch.setattr(bench_checkpoint, "measure", measure)
    monkeypatch.setattr(bench_checkpoint, "DP", 2)
    return done


def test_speeds_are_printed_as_shares_of_plain_files_and_of_a_plain_copy(measured, capsys):
    assert bench_checkpoint.main(["--gib", "1", "--rounds", "2"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["write_mindmodel", "0.43", "0.80", "0%", "3"] in lines
    assert ["read_mindspore", "cold", "0.54", "1.00", "0%", "3"] in lines
    assert ["read_verified", "warm", "1.07", "1.00", "0%", "3"] in lines
    assert ["block_mindmodel", "4.29", "0.80", "0%", "3"] in lines
    assert "the loop is held up for 10.0% of the time" in " ".join(lines[-3])


def test_a_round_of_writing_does_not_count(measured, capsys):
    bench_checkpoint.main(["--rounds", "2"])
    assert measured.count("write_torch") == 3 and measured.count("read_torch") == 2
    assert measured.index("write_torch") < measured.index("read_torch")


def test_the_index_is_computed_written_and_read(measured, capsys):
    bench_checkpoint.main(["--rounds", "1"])
    lines = capsys.readouterr().out.splitlines()[-2:]
    form = r"index of 70B .*, shard_optimizer=(none|states): ([\d,]+) slices, [\d,]+ bytes; computed in .* s, written"
    found = [re.match(form, line) for line in lines]
    assert [match[1] for match in found] == ["none", "states"]
    assert all(int(match[2].replace(",", "")) > 1451 for match in found)  # more than tensors: some are cut


def test_json_has_all_rows(measured, capsys):
    assert bench_checkpoint.main(["--rounds", "1", "--json", "-"]) == 0
    content = json.loads(capsys.readouterr().out)
    methods = [row["method"] for row in content["rows"]]
    assert methods == [*bench_checkpoint.METHODS, *bench_checkpoint.READS]
    assert [sorted(row) for row in content["index"]] == 2 * [
        ["bytes", "compute_s", "level", "read_s", "slices", "write_s"]
    ]


def test_each_of_our_measurements_runs_and_a_failed_one_is_told(tmp_path):
    for method in ("write_sequential", "write_mindmodel", "read_sequential", "read_mindmodel", "read_verified"):
        assert bench_checkpoint.measure(method, tmp_path, 2**20)["seconds"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mindmodel", "sequential"]
    assert bench_checkpoint.measure("block_mindmodel", tmp_path, 2**20)["seconds"] > 0
    with pytest.raises(bench_checkpoint.ChildFailed, match="KeyError: 'block_none'"):
        bench_checkpoint.measure("block_none", tmp_path, 1)
