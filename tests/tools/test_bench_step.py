"""The benchmark of training steps: its arithmetic on made-up times, what it refuses to compare, and one real run."""

from __future__ import annotations

import json

import bench_step
import pytest
from bench.sizes import SIZES
from bench_step import Row

LOSSES = [6.0, 5.9, 5.8, 5.7]
MACHINE_KEYS = {"cpu", "features", "cores", "threads"}
ROW_KEYS = {"size", "rival", "dtype", "median_s", "spread", "peak_bytes", "compile_s", "matmul_share"}
RATIO_KEYS = {"size", "precision", "row", "against", "ratio", "is_best"}


def row(rival: str, dtype: str = "float32", rounds=((1.0, 1.0),), losses=LOSSES) -> Row:
    """A row that was never measured."""
    return Row(rival=rival, dtype=dtype, rounds=list(map(list, rounds)), losses=losses, compile_s=3, peak_bytes=10**6)


@pytest.fixture
def run(monkeypatch, capsys):
    """Function: exit code, standard output and standard error of the tool when these rows were measured."""

    def call(rows, *options, failures=()):
        measured = list(rows), {"mindspore": 80e9, "torch": 100e9}, 0.3, list(failures)
        monkeypatch.setattr(bench_step, "measure", lambda size, args: measured)
        code = bench_step.main(["--sizes", "tiny", *options])
        return code, *capsys.readouterr()

    return call


def test_a_ratio_is_taken_within_each_round_so_that_drift_cancels():
    ours = row("mindmodel-graph", rounds=((1, 1), (2, 2), (4, 4)))
    theirs = row("torch-eager", rounds=((2, 2), (4, 4), (8, 8)))
    (found,) = bench_step.ratios("tiny", [ours, theirs])
    assert (found.ratio, found.is_best) == (0.5, True)
    assert (found.row, found.against) == ("mindmodel-graph float32", "torch-eager float32")


def test_the_best_of_both_sides_are_compared_in_each_precision():
    rows = [
        row("mindmodel-graph", rounds=((3, 3),)),
        row("mindmodel-native", rounds=((2, 2),)),
        row("torch-eager", rounds=((5, 5),)),
        row("torch-compile", rounds=((4, 4),)),
        row("mindmodel-native", "bfloat16", rounds=((1, 1),)),
        row("torch-eager", "bfloat16", rounds=((8, 8),)),
        row("torch-eager", "float32-medium", rounds=((2, 2),)),
    ]
    found = [item for item in bench_step.ratios("", rows) if item.is_best]
    assert [(item.precision, item.row, item.against, item.ratio) for item in found] == [
        ("float32", "mindmodel-native float32", "torch-compile float32", 0.5),
        ("bfloat16", "mindmodel-native bfloat16", "torch-eager float32-medium", 0.5),
    ]


def test_every_row_is_compared_with_the_torch_rows_of_its_precision_only():
    rows = [row("mindformers"), row("torch-eager"), row("torch-eager", "bfloat16")]
    pairs = [(item.row, item.against) for item in bench_step.ratios("", rows)]
    assert pairs == [("mindformers float32", "torch-eager float32")]


def test_the_table_shows_median_spread_memory_compilation_and_matmul_share(run):
    size = SIZES["tiny"]
    seconds = size.step_flop / 100e9  # the time of the faster matmuls alone
    rows = [row("mindmodel-graph", rounds=((2 * seconds,) * 4,)), row("torch-eager", rounds=((seconds,) * 4,))]
    code, out, _ = run(rows)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("tiny: ") and "mindspore 80 GFLOP/s, torch 100 GFLOP/s" in lines[0]
    assert lines[2].split() == ["mindmodel-graph", "float32", f"{2 * seconds:.4f}", "0%", "1", "3.0", "0.50", "2.00"]
    assert "float32: mindmodel-graph float32 takes 2.00 of the time of torch-eager float32" in lines


def test_other_work_on_the_machine_is_told(run):
    assert "NOT QUIET: other processes used 0.30 cores meanwhile" in run([row("torch-eager")])[1]


def test_rivals_that_skip_work_are_told_by_their_losses(run):
    code, _, err = run([row("mindmodel-graph"), row("torch-eager", losses=[*LOSSES[:3], 5.6])])
    assert code == 1
    assert "tiny: torch-eager float32: loss of step 4 is 5.60000, that of mindmodel-graph float32 5.70000" in err


def test_bfloat16_is_held_against_float32_with_more_room(run):
    near, far = [loss * 1.01 for loss in LOSSES], [loss * 1.03 for loss in LOSSES]
    assert run([row("torch-eager", "bfloat16", losses=near), row("torch-eager")])[0] == 0
    code, _, err = run([row("torch-eager", "bfloat16", losses=far), row("torch-eager")])
    assert code == 1 and "torch-eager bfloat16: loss of step 1" in err


def test_a_loss_that_is_not_a_number_disagrees(run):
    assert run([row("torch-eager"), row("mindmodel-graph", losses=[float("nan")] * 4)])[0] == 1


def test_a_rival_that_failed_is_named_and_the_others_are_shown(run):
    code, out, err = run([row("torch-eager")], failures=["mindmodel-native float32 failed: RuntimeError: no"])
    assert code == 1 and "torch-eager" in out
    assert "tiny: mindmodel-native float32 failed: RuntimeError: no" in err


def test_json_alone_is_on_standard_output(run):
    code, out, err = run([row("mindmodel-graph"), row("torch-eager")], "--json", "-")
    content = json.loads(out)
    assert code == 0 and "median_s" in err
    assert content["machine"].keys() == MACHINE_KEYS
    assert [item.keys() for item in content["rows"]] == [ROW_KEYS] * 2
    assert [item.keys() for item in content["ratios"]] == [RATIO_KEYS]


def test_json_to_a_file(run, tmp_path):
    _, out, _ = run([row("torch-eager")], "--json", str(tmp_path / "steps.json"))
    assert "torch-eager" in out
    assert json.loads((tmp_path / "steps.json").read_text())["rows"][0]["peak_bytes"] == 10**6


@pytest.mark.parametrize("option", ["--sizes", "--rivals", "--dtypes"])
def test_an_unknown_choice_is_refused_with_those_that_there_are(option, capsys):
    with pytest.raises(SystemExit):
        bench_step.main([option, "huge"])
    assert "huge: choose from " in capsys.readouterr().err


def test_flop_of_a_step_are_those_of_its_matmuls_and_of_causal_attention():
    for size in SIZES.values():
        norms = 6 * size.num_tokens * (2 * size.num_layers + 1) * size.hidden_size
        attention = 6 * size.num_layers * size.seq_len * size.hidden_size * size.num_tokens
        assert size.step_flop == size.matmul_flop + norms + attention


@pytest.mark.long
def test_mindmodel_and_torch_take_the_same_steps(tmp_path):
    target = tmp_path / "steps.json"
    options = ["--rivals", "mindmodel-graph,torch-eager", "--dtypes", "float32", "--rounds", "1"]
    assert bench_step.main(["--sizes", "tiny", *options, "--json", str(target)]) == 0
    rows = json.loads(target.read_text())["rows"]
    assert [item["rival"] for item in rows] == ["mindmodel-graph", "torch-eager"]
    assert all(item[name] > 0 for item in rows for name in ("median_s", "peak_bytes", "compile_s", "matmul_share"))
