"""mindmodel dryrun; what compiles is replaced, except in one test."""

from __future__ import annotations

import json
import math

import pytest

from mindmodel.cli import dryrun
from mindmodel.cli.main import main
from mindmodel.dryrun.prove import Proof
from mindmodel.dryrun.report import Collective, RankReport
from mindmodel.errors import LayoutError
from mindmodel.fleet.chips import USABLE_SHARE, Chip
from mindmodel.fleet.layouts import highest_estimate
from mindmodel.machine import Memory
from step_trace import live_with

TEXT = """\
model: {family: llama, hidden_size: 64, num_layers: 4, num_heads: 4, ffn_size: 160, vocab_size: 512}
data: {source: stdlib, tokenizer_vocab_size: 512, seq_len: 32}
parallel: {dp: auto, tp: 2}
train: {steps: 100, tokens_per_step: 512}
"""
GIB = 1 << 30
USABLE = 59_392 << 20


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "demo.yaml"
    file.write_text(TEXT)
    return str(file)


def report(rank, peak_bytes):
    live = live_with(weights=GIB, optimizer=2 * GIB, activations=peak_bytes - 3 * GIB)
    return RankReport(
        rank=rank, stage=0, live=live, host_bytes=GIB, cpu_s=12.0,
        collectives=(
            Collective(kind="AllReduce", axes=("tp",), count=4, bytes=4 * GIB, dtype="bfloat16", ranks=(0, 1)),
            Collective(kind="AllGather", axes=("dp",), count=2, bytes=2 * GIB, dtype="float32", ranks=(0, 8)),
        ),
        kernels={"MatMul": 40, "Gather": 1}, layer_kernels=30, old_kernels=("Gather",),
    )


@pytest.fixture
def compiler(monkeypatch):
    """In place of the compiler: notes what it is given, and gives what `peak` says."""
    seen = {"peak": 10 * GIB}

    def dry_run(recipe, ranks, at_once, progress):
        seen.update(recipe=recipe, ranks=ranks, at_once=at_once)
        for done, rank in enumerate(ranks, 1):
            progress(done, f"rank {rank}")
        return [report(rank, seen["peak"]) for rank in ranks]

    monkeypatch.setattr(dryrun, "dry_run", dry_run)
    return seen


def test_it_prints_the_layout_memory_collectives_and_kernels(path, compiler, capsys):
    assert main(["dryrun", path, "--devices", "16"]) == 0
    out = capsys.readouterr().out
    for line in (
        "pp=1 dp=8 cp=1 tp=2, 16 devices",
        "16 sequences a step, 2 a rank, in 1 micro-batches of 2",
        "that rank 0 updates",
        "a 910B3 has 58.00 that a job can use",
        "rank 0: sends 4.00 GiB over the node's links, 1.00 GiB over the network in a step",
        "AllReduce     tp               4 x    1.00 GiB  bfloat16",
        "of the old kind aclop: Gather 1",
        "workspaces of kernels",
        "HCCL's buffers, for 2 groups",
        "it fits",
    ):
        assert line in out


def test_for_scripts_it_prints_one_object(path, compiler, capsys):
    assert main(["dryrun", path, "--devices", "16", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["fits"], found["usable_bytes"], found["compile_cpu_s"]) == (True, USABLE, 12.0)
    (rank,) = found["ranks"]
    assert set(rank) == {"rank", "stage", "peak_bytes", "by_kind", "host_bytes", "collectives", "kernels"}
    assert sum(rank["by_kind"].values()) == rank["peak_bytes"]


def test_what_does_not_fit_is_exit_code_1_with_layouts_that_would(path, compiler, capsys, monkeypatch):
    main(["dryrun", path, "--devices", "16"])
    less = int(0.99 * highest_estimate(compiler["recipe"]).total / USABLE_SHARE)
    small = Chip(name="small", hbm_bytes=less)
    monkeypatch.setattr(dryrun, "find_chip", lambda name: small)
    assert main(["dryrun", path, "--devices", "16"]) == 1
    out = capsys.readouterr().out
    assert "it does not fit a small" in out and "parallel." in out.split("these would:")[1]


def test_where_no_layout_near_it_fits_it_says_so(path, compiler, capsys, monkeypatch):
    tiny = Chip(name="tiny", hbm_bytes=1000)
    monkeypatch.setattr(dryrun, "find_chip", lambda name: tiny)
    assert main(["dryrun", path, "--devices", "16"]) == 1
    assert "does not fit a tiny, nor does any layout near it of 16 devices: use more" in capsys.readouterr().out


def test_a_chip_with_less_memory_holds_less(path, compiler):
    compiler["peak"] = 40 * GIB
    assert main(["dryrun", path, "--devices", "16", "--chip", "910B2"]) == 0
    assert main(["dryrun", path, "--devices", "16", "--chip", "910B4"]) == 1


def test_ranks_and_overrides_are_as_given(path, compiler):
    assert main(["dryrun", path, "--devices", "16", "--rank", "3", "parallel.tp=4", "--rank", "9"]) == 0
    assert compiler["ranks"] == (3, 9) and compiler["recipe"].parallel.tp == 4


def test_of_a_pipeline_the_first_the_middle_and_the_last_stage_are_compiled(path, compiler):
    assert main(["dryrun", path, "--devices", "16", "parallel.pp=4", "parallel.micro_batches=4"]) == 0
    assert compiler["ranks"] == (0, 8, 12)


def test_the_vocabulary_of_a_tokenizer_that_is_trained_is_known(path, compiler):
    assert main(["dryrun", path, "--devices", "2", "model.vocab_size=null"]) == 0
    assert compiler["recipe"].model.vocab_size == 512


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--devices", "16", "--chip", "910A"], "chip '910A' is unknown. Use one of 910B1"),
        (["--devices", "3"], "cannot be 3 devices"),
        (["--devices", "2", "--rank", "2"], "rank 2 is none of 2 devices. Use 0 to 1."),
        (["--devices", "16", "parallel.tp=8"], "num_heads"),
        (["--devices", "16", "parallel.pp=8", "parallel.tp=1", "parallel.micro_batches=8"], "num_layers"),
        (["--devices", "2", "model.vocab_size=null", "data.tokenizer=t.json"], "Give model.vocab_size, such as"),
    ],
)
def test_bad_input_is_exit_code_2_with_what_would_work(path, compiler, capsys, arguments, words):
    assert main(["dryrun", path, *arguments]) == 2
    assert words in capsys.readouterr().err


def test_without_memory_for_a_compilation_it_says_so(path, compiler, monkeypatch, capsys):
    monkeypatch.setattr(dryrun, "memory", lambda: Memory(total_bytes=GIB, free_bytes=1000))
    assert main(["dryrun", path, "--devices", "16"]) == 2
    assert "1000 B are free" in capsys.readouterr().err


def test_a_layout_that_does_not_compile_is_exit_code_2(path, monkeypatch, capsys):
    def refuse(*_):
        raise LayoutError("rank 0 of 16 does not compile: MatMul: no")

    monkeypatch.setattr(dryrun, "dry_run", refuse)
    assert main(["dryrun", path, "--devices", "16"]) == 2
    assert "LayoutError: rank 0 of 16 does not compile: MatMul: no" in capsys.readouterr().err


@pytest.fixture
def prover(monkeypatch):
    seen = {"weight": 1e-13}

    def prove(recipe, at_once, progress):
        seen["recipe"] = recipe
        worst = "weight norm", seen["weight"]
        return Proof(recipe=recipe, loss=1e-15, gradient=1e-14, weight=worst[1], copies=0.0, worst=worst)

    monkeypatch.setattr(dryrun, "prove", prove)
    return seen


def test_a_proof_is_of_the_shrunk_recipe_with_the_same_degrees(path, prover, capsys):
    assert main(["dryrun", path, "--devices", "8", "--prove"]) == 0
    recipe = prover["recipe"]
    assert (recipe.parallel.dp, recipe.parallel.tp, recipe.model.num_layers) == (4, 2, 2)
    assert recipe.model.vocab_size is not None
    assert "proven" in capsys.readouterr().out


def test_above_16_devices_the_layout_that_is_proven_is_named(path, prover, capsys):
    assert main(["dryrun", path, "--devices", "32", "train.tokens_per_step=1024", "--prove"]) == 0
    out = capsys.readouterr().out
    assert "on fewer devices:" in out and "parallel.dp: 16 -> 8" in out and "dp=8 cp=1 tp=2, 3 steps" in out


def test_a_wrong_layout_is_refuted_with_the_tensor_that_differs(path, prover, capsys):
    prover["weight"] = 0.5
    assert main(["dryrun", path, "--devices", "8", "--prove"]) == 1
    assert "refuted: weight norm differs by 5.0e-01" in capsys.readouterr().out


def test_a_proof_for_scripts_is_one_object(path, prover, capsys):
    assert main(["dryrun", path, "--devices", "8", "--prove", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["holds"] is True and found["weight"] == 1e-13


def test_for_scripts_an_infinite_difference_is_null(path, prover, capsys):
    prover["weight"] = math.inf
    assert main(["dryrun", path, "--devices", "8", "--prove", "--json"]) == 1
    out = capsys.readouterr().out
    assert "Infinity" not in out and json.loads(out)["weight"] is None


def test_what_is_alive_is_printed_and_written_as_a_page_in_the_runs_folder(path, compiler, capsys, tmp_path):
    folder = tmp_path / "run"
    assert main(["dryrun", path, "--devices", "16", "--live", f"runtime.output={folder}"]) == 0
    out = capsys.readouterr().out
    assert "rank 0: 10 GiB alive at the peak, in kernel 1 of 1: Mul of loss, backward" in out
    assert f"wrote       {folder / 'live_memory.html'}" in out
    page = (folder / "live_memory.html").read_text()
    assert "Live memory of demo" in page and "pp=1 dp=8 cp=1 tp=2, 16 devices" in page


def test_without_live_nothing_is_written(path, compiler, capsys, tmp_path):
    main(["dryrun", path, "--devices", "16", f"runtime.output={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists() and "alive" not in capsys.readouterr().out


def test_a_page_that_cannot_be_written_is_exit_code_2(path, compiler, capsys, tmp_path):
    (tmp_path / "run").write_text("")
    assert main(["dryrun", path, "--devices", "16", "--live", f"runtime.output={tmp_path / 'run'}"]) == 2
    assert str(tmp_path / "run") in capsys.readouterr().err


def test_a_proof_has_no_memory_to_show(path, prover, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["dryrun", path, "--devices", "8", "--prove", "--live"])
    assert "not allowed with argument" in capsys.readouterr().err


def test_the_compiler_says_what_its_ranks_take(path, capsys, tmp_path):
    """With MindSpore's compiler, in half a minute."""
    arguments = ["--devices", "4", "model.num_layers=2", "--live", "--json", f"runtime.output={tmp_path / 'run'}"]
    assert main(["dryrun", path, *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    (rank,) = found["ranks"]
    assert sum(rank["by_kind"].values()) == rank["peak_bytes"] > 0 and rank["by_kind"]["optimizer"] > 0
    assert {"AllReduce"} == {collective["kind"] for collective in rank["collectives"]}
    assert {("tp",), ("dp",)} <= {tuple(collective["axes"]) for collective in rank["collectives"]}
    assert rank["kernels"]["FlashAttentionScore"] == 2
    _check_live(rank["live"], rank["peak_bytes"])
    assert "<svg" in (tmp_path / "run" / "live_memory.html").read_text()


def _check_live(live, peak_bytes):
    """Every byte that the compiler measured belongs to a tensor, at a kernel of the step."""
    assert live["peak"]["bytes"] == peak_bytes == sum(group["num_bytes"] for group in live["groups"])
    assert peak_bytes == sum(live["by_kind"].values()) == sum(sum(part.values()) for part in live["by_part"].values())
    assert peak_bytes == max(map(sum, zip(*live["curve"]["by_kind"].values()))) == max(live["by_phase"].values())
    assert {"embedding", "layers.0", "layers.1", "head"} <= set(live["by_part"])
    assert any(group["place"].startswith("layers.*.") and group["count"] % 2 == 0 for group in live["groups"])
