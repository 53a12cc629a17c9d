"""mindmodel debug profile as a user starts it, with each kind of kernels: one command, at which several tests look."""

from __future__ import annotations

import json
import os

import pytest

from command import Command, fill_with_corpus
from mindmodel.cli.debug import profile
from mindmodel.cli.main import main
from timed_step import PROFILE, RECORDING

LAYERS, HIDDEN, FFN, TOKENS = 3, 32, 64, 128
KEYS = f"model.num_layers={LAYERS}", "parallel.micro_batches=2"


BFLOAT16 = "graph train.compute_dtype=bfloat16"


@pytest.fixture(scope="module", params=["auto", "graph", pytest.param(BFLOAT16, marks=pytest.mark.long)])
def profiled(request, tmp_path_factory, cache_of_the_tests):
    """The command of a folder in which a step was profiled into `saved`, and what it printed as JSON."""
    folder = tmp_path_factory.mktemp("profile")
    fill_with_corpus(folder)
    command = Command(folder)
    before = sorted(folder.rglob("*"))
    keys = *KEYS, *f"runtime.cpu_kernels={request.param}".split()
    done = command("debug", "profile", "recipe.yaml", *keys, "--steps", "3", "--json", "--out", "saved")
    assert done.returncode == 0, done.stderr
    command.printed, command.before, command.kernels = json.loads(done.stdout), before, request.param
    return command


def test_a_step_is_profiled_and_nothing_else_is_left_behind(profiled):
    after = {path.relative_to(profiled.folder).as_posix() for path in profiled.folder.rglob("*")}
    names = ["profile.json", "profile.html", "trace.json"]
    assert profiled.printed["files"] == [f"saved/{name}" for name in names]
    assert after - {path.relative_to(profiled.folder).as_posix() for path in profiled.before} == {
        "saved", *(f"saved/{name}" for name in names)
    }


def test_the_phases_add_up_to_the_step(profiled):
    printed = profiled.printed
    assert sum(printed["phases"].values()) == pytest.approx(printed["step_s"])
    assert all(printed["phases"][phase] > 0 for phase in ("data", "forward", "loss", "backward", "optimizer"))
    assert printed["phases"]["not in kernels"] > 0 and printed["num_steps"] == 3


def test_all_layers_have_as_many_kernels(profiled):
    trace = json.loads((profiled.folder / "saved" / "trace.json").read_text())["traceEvents"]
    places = [event["args"]["place"] for event in trace if "place" in event.get("args", {})]
    counts = [sum(f"layers.{number}." in f"{place}." for place in places) for number in range(LAYERS)]
    assert counts[1] == counts[2] > 0 and counts[1] <= counts[0] <= 1.1 * counts[1]
    assert len(places) == 3 * profiled.printed["num_kernels"]


def test_products_have_the_flop_of_their_shapes(profiled):
    rows = [row for row in profiled.printed["rows"] if row["place"] == "layers.*.mlp.gate_up" and row["flop"]]
    flop = {phase: sum(row["flop"] for row in rows if row["phase"] == phase) for phase in ("forward", "backward")}
    once = LAYERS * 2 * TOKENS * HIDDEN * 2 * FFN
    assert flop == {"forward": once, "backward": 2 * once}


def test_the_peak_is_explained_but_for_an_input_that_is_given_back(profiled):
    memory = profiled.printed["memory"]
    held = sum(row["num_bytes"] for row in memory["held"])
    assert held + memory["fixed_bytes"] + memory["unexplained_bytes"] == memory["peak_bytes"] > 0
    assert abs(memory["unexplained_bytes"]) <= 1024
    assert memory["parameter_bytes"]["optimizer"] > memory["parameter_bytes"]["weights"] > 0


def test_fused_kernels_are_named_by_their_operators_and_have_a_line(profiled):
    fused = [row for row in profiled.printed["rows"] if row["operator"].startswith("fused ")]
    assert bool(fused) == bool(profiled.printed["num_fused"]) == (profiled.kernels == "graph")
    assert all("mindmodel/" in row["where"] for row in fused if row["phase"] == "forward")


@pytest.fixture
def recorded(path, monkeypatch):
    """In place of the profiler: notes the recipe that it is given."""
    seen = []
    monkeypatch.setattr(profile, "open_run", lambda recipe, *_: seen.append(recipe))
    monkeypatch.setattr(profile, "_profiled", lambda *_: (RECORDING, PROFILE))
    return seen


def test_a_recipe_in_pynative_mode_is_profiled_in_the_graph(path, recorded):
    assert main(["debug", "profile", path, "runtime.mode=pynative"]) == 0
    assert recorded[0].runtime.mode == "graph" and not recorded[0].runtime.compile_cache


def test_the_terminal_gets_a_table(path, recorded, capsys):
    assert main(["debug", "profile", path, "--steps", "2"]) == 0
    said = capsys.readouterr().out
    for line in (
        "step        54.00 ms, mean of 2 (41.00 to 67.00); median 54.00, without the profiler 50.00: +8.0%",
        "kernels     13, 1 of them fused by MindSpore from several operators; graph kernels, 2 threads",
        "  data                          1.00    1.9%",
        "  not in kernels               14.00   25.9%",
        f"  layers.1                {3:11.2f}{0:11.2f}{9:11.2f}{0:11.2f}",
        f"  {'MatMul of layers.*.mlp.down, forward':<62}   2      6.00      0.2  [64, 64] x [64, 64]",
        "     16 KiB    1 x float32[64, 64]          Gather of embedding, forward; last read by MatMul, backward",
        "wrote       runs/demo/profile/trace.json",
    ):
        assert line in said.splitlines(), said


def test_a_simulated_device_is_refused_and_a_real_one_pointed_to(path, capsys):
    assert main(["debug", "profile", path, "--device", "ascend"]) == 2
    said = capsys.readouterr().err
    assert "measures on the CPU only" in said and "mindspore.profiler.profile" in said
    assert os.listdir() == [path]


def test_a_cluster_s_recipe_is_pointed_to_single(path, capsys):
    assert main(["debug", "profile", path, "parallel.tp=2"]) == 2
    assert "`--single --shrink` with small sizes" in capsys.readouterr().err


def test_less_than_one_step_is_refused(path, capsys):
    with pytest.raises(SystemExit):
        main(["debug", "profile", path, "--steps", "0"])
    assert "0 is less than 1" in capsys.readouterr().err


def test_a_corpus_that_cannot_be_made_is_refused_and_nothing_written(path, capsys):
    assert main(["debug", "profile", path, "data.source=nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err and os.listdir() == [path]
