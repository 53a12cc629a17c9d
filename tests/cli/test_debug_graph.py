"""mindmodel debug graph; what compiles is replaced, except in one test."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from command import ROOT
from mindmodel.cli.debug import graph
from mindmodel.cli.main import main
from mindmodel.debug.graph.summary import CastGroup, ConstantGroup, GraphSummary, Missing, ParameterGroup, TensorRow

SUMMARY = GraphSummary(
    recipe="demo", device="cpu", mindspore="2.9.0",
    kinds={"MatMul": 40, "Cast": 2}, layers={"layers.0": (30, 6), "step": (6, 0)},
    parameters=(
        ParameterGroup(name="layers.*.weight", type="float32[64, 64]", count=4, num_bytes=65536, updated=True),
        ParameterGroup(name="layers.*.mask", type="float32[32, 32]", count=4, num_bytes=16384, updated=False),
    ),
    constants=(ConstantGroup(type="uint8[64, 64]", copies=4, num_bytes=16384, place="layers.0.mlp", where="net.py:7"),),
    tensors=(TensorRow(type="float32[512, 160]", num_bytes=327680, kind="MatMul", place="layers.0", where="net.py:9"),),
    casts=(CastGroup(before="float32", after="bfloat16", origin="layers.*.norm", count=2, where="net.py:11"),),
    compile_s={"total": 7.5, "optimize": 4.0, "type_inference": 2.0}, missing=(),
)
LACKING = (
    Missing(operator="RmsNorm", types="float32", count=9, reason="Unsupported op [RmsNorm] on CPU",
            places=("layers.0",), where=("net.py:20", "net.py:31")),
    Missing(operator="FlashAttentionScore", types="float16", count=4, reason="Unsupported op", places=(),
            where=("net.py:40",)),
)


class Step:
    """In place of a compiled step."""

    stages = {"1_parsed": "parsed", "2_optimized": "optimized"}

    def __init__(self, **changed):
        self._summary = dataclasses.replace(SUMMARY, **changed)

    def summary(self, recipe, device):
        return self._summary


@pytest.fixture
def compiler(monkeypatch):
    """In place of the compiler: notes what it is given, and gives `step`."""
    seen = {"step": Step()}

    def on_cpu(recipe, terminal):
        seen.update(recipe=recipe)
        return seen["step"]

    def for_ascend(recipe, rank):
        seen.update(recipe=recipe, rank=rank)
        return Step(device="ascend")

    monkeypatch.setattr(graph, "_on_cpu", on_cpu)
    monkeypatch.setattr(graph, "compile_for_ascend", for_ascend)
    return seen


def test_the_report_tells_what_is_in_the_graph_and_what_was_written(path, compiler, capsys):
    assert main(["debug", "graph", path]) == 0
    said = capsys.readouterr().out
    for line in (
        "graph       42 nodes for cpu, MindSpore 2.9.0",
        "operators   MatMul 40, Cast 2",
        "  layers.0                      30       6",
        "parameters  8, with the optimizer's: 80 KiB",
        "  never updated: layers.*.mask float32[32, 32], 4 of them: 16 KiB",
        "  held 4 times: uint8[64, 64], read in layers.0.mlp  net.py:7",
        "    320 KiB  float32[512, 160]  MatMul of layers.0  net.py:9",
        "          2  float32 to bfloat16 of layers.*.norm  net.py:11",
        "compiled    in 7.5 s: optimize 4.0, type_inference 2.0",
        "wrote       runs/demo/graph/graph.json",
        "kernels     all operators have one",
    ):
        assert line in said.splitlines()
    assert Path("runs/demo/graph/1_parsed.ir").read_text() == "parsed"
    assert Path("runs/demo/graph/2_optimized.ir").read_text() == "optimized"


def test_all_operators_without_a_kernel_are_listed_with_their_lines(path, compiler, capsys):
    compiler["step"] = Step(missing=LACKING)
    assert main(["debug", "graph", path]) == 1
    assert capsys.readouterr().out.splitlines()[-6:] == [
        "kernels     2 operators have none on this device:",
        "  RmsNorm (float32), 9 nodes: Unsupported op [RmsNorm] on CPU",
        "    net.py:20",
        "    net.py:31",
        "  FlashAttentionScore (float16), 4 nodes: Unsupported op",
        "    net.py:40",
    ]


@pytest.mark.parametrize("old", ["before", "before/graph.json"])
def test_a_change_is_shown_against_a_saved_summary(path, compiler, capsys, old):
    assert main(["debug", "graph", path, "--out", "before"]) == 0
    casts = (dataclasses.replace(SUMMARY.casts[0], count=6),)
    compiler["step"] = Step(kinds={"MatMul": 40, "Cast": 6}, casts=casts)
    capsys.readouterr()
    assert main(["debug", "graph", path, "--diff", old]) == 0
    said = capsys.readouterr().out
    changed = ["nodes 42 -> 46", "operator Cast: 2 -> 6", "cast float32 to bfloat16 of layers.*.norm: 2 -> 6"]
    assert "\n".join([f"changes     since {old}", *(f"  {line}" for line in changed), "wrote "]) in said


def test_no_change_is_said_too(path, compiler, capsys):
    assert main(["debug", "graph", path, "--out", "before"]) == 0
    assert main(["debug", "graph", path, "--diff", "before"]) == 0
    assert "changes     none since before" in capsys.readouterr().out


def test_a_summary_that_is_not_there_is_refused_before_anything_is_compiled(path, compiler, capsys):
    assert main(["debug", "graph", path, "--diff", "nowhere"]) == 2
    assert "Error: nowhere" in capsys.readouterr().err
    assert "recipe" not in compiler and not Path("runs").exists()


def test_json_is_one_object(path, compiler, capsys):
    assert main(["debug", "graph", path, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["kinds"] == {"MatMul": 40, "Cast": 2} and printed["changes"] is None
    assert printed["files"][0] == "runs/demo/graph/graph.json"


def test_keys_may_stand_behind_options(path, compiler):
    assert main(["debug", "graph", path, "--out", "here", "train.compute_dtype=bfloat16", "--json"]) == 0
    assert compiler["recipe"].train.compute_dtype == "bfloat16"


def test_a_rank_of_many_is_compiled_for_a_simulated_device(path, compiler, capsys):
    arguments = ["debug", "graph", path, "parallel.tp=2", "--device", "ascend", "--devices", "4", "--rank", "3"]
    assert main(arguments) == 0
    assert compiler["rank"] == 3 and compiler["recipe"].parallel.dp == 2
    assert "kernels     all operators have one, as far as MindSpore knows; what CANN" in capsys.readouterr().out


def test_a_rank_that_is_none_is_refused(path, compiler, capsys):
    assert main(["debug", "graph", path, "parallel.tp=2", "--device", "ascend", "--devices", "4", "--rank", "4"]) == 2
    assert "rank 4 is none of 4 devices. Use 0 to 3." in capsys.readouterr().err


def test_a_cluster_s_recipe_is_pointed_to_single(path, compiler, capsys):
    assert main(["debug", "graph", path, "parallel.tp=2"]) == 2
    assert "--single" in capsys.readouterr().err


def test_a_recipe_is_compiled_and_its_graph_saved(command):
    keys = "runtime.cpu_kernels=graph", "train.compute_dtype=bfloat16"
    done = command("debug", "graph", "recipe.yaml", *keys, "--json", "--out", "saved")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["missing"] == [] and printed["kinds"]["MatMul"] > 5 and printed["compile_s"]["total"] > 0
    names = ["graph.json", "1_parsed.ir", "2_optimized.ir", "3_kernels.ir"]
    assert sorted(printed["files"]) == sorted(f"saved/{name}" for name in names)
    assert "mindmodel/layers/cpu.py" in (command.folder / "saved" / "2_optimized.ir").read_text()
    assert not (command.folder / "runs").exists() and "PIPELINE" not in done.stderr


@pytest.mark.long
def test_a_rank_of_a_cluster_s_recipe_is_compiled_for_a_simulated_device_and_its_kernels_are_asked_for(
    command, standin
):
    arguments = str(ROOT / "recipes" / "llama" / "1b_8.yaml"), "--shrink", "model.num_layers=1"
    device = "--device", "ascend", "--devices", "8", "--rank", "1"
    done = command("debug", "graph", *arguments, *device, "--json", "--out", "saved")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["missing"] == [] and printed["device"] == "ascend" and printed["compile_s"]["total"] > 0
    assert {"FlashAttentionScore", "RmsNorm", "Swiglu", "RotaryPositionEmbedding"} <= set(printed["kinds"])
    names = ["graph.json", "1_parsed.ir", "2_optimized.ir"]
    assert sorted(printed["files"]) == sorted(f"saved/{name}" for name in names)
    assert "mindmodel/layers/ascend.py" in (command.folder / "saved" / "2_optimized.ir").read_text()
