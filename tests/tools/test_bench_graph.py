"""The benchmark of compiled graphs: bounds as published, what is counted, tables and JSON, and one real run."""

from __future__ import annotations

import json
import math
import subprocess

import bench_graph
import pytest
from bench.graph_bounds import gathered_again_bytes, peak_bytes, sizes_of, wire_bytes
from bench.graph_counts import Counts, is_of_network, num_tensors
from bench.graph_counts import wire_bytes as counted_wire_bytes
from bench.graph_layouts import LAYOUTS
from bench.rivals import ChildFailed

from mindmodel.dryrun.report import Collective, ring_bytes
from mindmodel.errors import LayoutError, RecipeError
from mindmodel.fleet.collectives import collectives_of
from mindmodel.fleet.memory import estimate_memory
from mindmodel.parallel.mesh import mesh_of

GIB = 2**30
SMALL = ["model.hidden_size=128", "model.num_heads=4", "model.ffn_size=384", "data.seq_len=128"]
ROW_KEYS = {"layout", "rival", "layers", "peak_bytes", "wire_bytes", "kernels_per_layer"}
ROW_KEYS |= {"optimizer_kernels_per_tensor", "compile_cpu_s", "extrapolated"}


def counts(layers: int, scale: float = 1.0) -> Counts:
    """Of a rival that needs 1 GiB and half a GiB a layer."""
    return Counts(
        peak_bytes=scale * (1 + layers / 2) * GIB,
        wire_bytes=scale * layers / 4 * GIB,
        network_kernels=100 + 42 * layers,
        update_kernels=40 + 30 * layers,
        tensors=3 + 6 * layers,
        compile_cpu_s=2.0 + layers,
    )


@pytest.fixture
def run(monkeypatch, capsys):
    """Function: exit code, standard output and standard error of the tool, its rivals compiled by no compiler."""
    compiled = []

    def rival(scale):
        def compile_nothing(recipe, rank):
            compiled.append((recipe.model.num_layers, rank))
            return counts(recipe.model.num_layers, scale)

        return compile_nothing

    monkeypatch.setattr(bench_graph, "RIVALS", {"mindmodel": rival(1), "mindformers": rival(2)})

    def call(*options, failing=None):
        if failing is not None:
            monkeypatch.setitem(bench_graph.RIVALS, "mindformers", failing)
        rivals = () if "--rival" in options else ("--rival", "mindmodel", "mindformers", "bound")
        code = bench_graph.main(["--layout", "dp2tp4", *options, *rivals])
        return code, *capsys.readouterr()

    call.compiled = compiled
    return call


@pytest.mark.parametrize(
    "name, peak, wire, again",
    [
        ("dp2tp4", 19.82, 10.80, 0),
        ("dp2tp4-sp", 16.79, 10.80, 12.32 - 10.80),
        ("dp8tp8-sp", 4.88, 11.23, 1.78),
        ("dp4tp4pp4-first", 10.69, 15.08, 0),
        ("dp4tp4pp4-first-sp", 7.69, 14.71, 3.00),
        ("dp4tp4pp4-last", 5.67, 14.33, 0),
        ("dp4tp4pp4-last-sp", 4.89, 13.96, 3.19),
        ("dp2tp4-recompute", 13.80, 12.30, 0),
    ],
)
def test_bounds_of_llama_7b_in_gib(name, peak, wire, again):
    layout = LAYOUTS[name]
    sizes = sizes_of(layout.recipe(32), layout.rank)
    found = [peak_bytes(sizes) / GIB, wire_bytes(sizes) / GIB, gathered_again_bytes(sizes) / GIB]
    assert found == pytest.approx([peak, wire, again], abs=0.006)


def test_stages_have_as_many_layers_each_and_each_replica_one_sequence_a_micro_batch():
    recipe = LAYOUTS["dp4tp4pp4-last"].recipe(8)
    assert recipe.parallel.stages == (2, 2, 2, 2)
    assert recipe.sequences_per_step == 4 * 8 and recipe.data.seq_len == 4096
    assert recipe.train.clip_norm > 0 and recipe.train.check_finite != "none"
    assert (recipe.train.compute_dtype, recipe.parallel.shard_optimizer) == ("bfloat16", "states")


def test_changes_are_put_on_top_of_the_recipe():
    recipe = LAYOUTS["dp2tp4"].recipe(2, [*SMALL, "parallel.shard_optimizer=gradients"])
    assert (recipe.model.hidden_size, recipe.parallel.shard_optimizer) == (128, "gradients")
    assert recipe.sequences_per_step == 2


@pytest.mark.parametrize(
    "node, ours, expected",
    [
        ("Default/network-RankStep/network-DecoderLoss/decoder-Decoder/norm-Norm/RmsNorm-op3", True, True),
        ("Gradients/Default/network-RankStep/network-DecoderLoss/Grad_Cast/Cast-op1", True, True),
        ("Default/network-_VirtualDatasetCell/_backbone-LlamaForCausalLM/lm_head-Linear/MatMul-op9", False, True),
        ("Default/AssignAdd-op12", False, True),
        ("Default/network-RankStep/optimizer-AdamW/update-AdamWAscend/Sub-op1", True, False),
        ("Default/optimizer-AdamW/AssignAdd-op2", False, False),
        ("Default/IsFinite-op7", False, False),
        ("Default/Cast-op7", True, True),
    ],
)
def test_kernels_are_of_the_network_or_of_the_update(node, ours, expected):
    assert is_of_network(node, ours) == expected


def test_parameters_are_told_from_their_moments_and_summed_gradients():
    ours = ["norm.weight", "first_moment.norm.weight", "second_moment.norm.weight", "accu_grads.norm.weight", "lr"]
    theirs = ["model.tok.embedding_weight", "adam_m.model.tok.embedding_weight", "lm_head.weight", "global_step"]
    assert (num_tensors(ours), num_tensors(theirs)) == (1, 2)


def test_bytes_between_stages_count_both_ways():
    def of(kind, ranks):
        return Collective(kind=kind, axes=(), count=1, bytes=80, dtype="float32", ranks=ranks)

    assert counted_wire_bytes((of("Send", (0, 4)), of("Receive", (0, 4)))) == 160
    assert counted_wire_bytes((of("AllReduce", (0, 1, 2, 3)), of("AllGather", (0, 1, 2, 3)))) == 120 + 60


@pytest.mark.parametrize(
    "layout, settings",
    [
        ("dp2tp4", ("selective", "compute")),
        ("dp2tp4-recompute", ("full", "compute")),
        ("dp4tp4pp4-first", ("selective", "float32")),
    ],
)
def test_the_lean_recipe_computes_what_is_cheap_again_and_sums_in_bfloat16_where_it_can(layout, settings):
    recipe = bench_graph.LAYOUTS[layout].recipe(4)
    parallel = bench_graph.lean(recipe).parallel
    assert (parallel.recompute, parallel.reduce_dtype) == settings
    assert bench_graph.lean(bench_graph.lean(recipe)) == bench_graph.lean(recipe)


MINDFORMERS = {
    "dp2tp4": (21.284, 10.926),
    "dp2tp4-sp": (19.822, 10.972),
    "dp8tp8-sp": (7.527, 11.420),
    "dp4tp4pp4-first": (11.946, 15.880),
    "dp4tp4pp4-first-sp": (10.375, 15.505),
    "dp4tp4pp4-last": (6.232, 14.336),
    "dp4tp4pp4-last-sp": (5.857, 14.336),
    "dp2tp4-recompute": (17.298, 12.426),
}
"""GiB of its 32 layers at the peak and on the wire, the lowest of three settings each, as the tool measured them."""


def wire_of(recipe, rank):
    """By the closed form."""
    mesh, total = mesh_of(recipe.parallel), 0.0
    for call in collectives_of(recipe, rank):
        size = math.prod(mesh.degree(name) for name in call.axes)
        whole = call.bytes * size if call.kind == "AllGather" else call.bytes
        total += whole if call.kind in ("Send", "Receive") else ring_bytes(call.kind, whole, size)
    return total


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_has_a_setting_below_mindformers_in_memory_and_on_the_wire_at_once(name):
    layout = LAYOUTS[name]
    recipe, (peak, wire) = layout.recipe(32), MINDFORMERS[name]
    recipe = bench_graph.kept(recipe) if layout.sequence_parallel else recipe
    assert estimate_memory(recipe, layout.rank).total <= peak * GIB
    assert wire_of(recipe, layout.rank) <= wire * GIB


def test_tokens_are_kept_only_where_they_are_gathered(run, monkeypatch):
    monkeypatch.setitem(bench_graph.RIVALS, "mindmodel-kept", bench_graph.RIVALS["mindmodel"])
    _, out, _ = run("--layout", "dp2tp4", "dp2tp4-sp", "--layers", "32", "--rival", "mindmodel", "mindmodel-kept")
    assert out.count("mindmodel-kept") == 1


def test_two_depths_are_extrapolated_to_32_layers_and_the_table_says_so(run):
    code, out, _ = run()
    lines = [line.split() for line in out.splitlines()]
    assert code == 0 and run.compiled == [(4, 0), (8, 0)] * 2
    assert lines[2] == ["mindmodel", "32*", "17.00", "8.00", "42.0", "5.1", "34.0"]
    assert lines[3] == ["mindformers", "32*", "34.00", "0.50", "16.00", "0.50", "42.0", "5.1", "34.0"]
    assert lines[4] == ["bound", "32", "19.82", "0.86", "10.80", "0.74"]
    assert "* extrapolated on the line through 4 and 8 layers" in out


def test_32_layers_are_compiled_when_they_are_asked_for(run):
    _, out, _ = run("--layers", "32", "--rival", "mindmodel")
    assert run.compiled == [(32, 0)] and "*" not in out
    _, out, _ = run("--layers", "28,32", "--rival", "mindmodel")
    assert run.compiled[1:] == [(28, 0), (32, 0)] and "*" not in out and "42.0" in out


def test_the_wire_that_the_bound_of_the_peak_costs_is_told(run):
    assert "gathered again: 1.52 GiB more on the wire" in run("--layout", "dp2tp4-sp")[1]
    assert "gathered again" not in run()[1]


def test_json_alone_is_on_standard_output(run):
    code, out, err = run("--json")
    rows = json.loads(out)["rows"]
    assert code == 0 and "peak_GiB" in err
    assert all(row.keys() == ROW_KEYS for row in rows)
    assert [(row["rival"], row["layers"], row["extrapolated"]) for row in rows if row["rival"] != "mindformers"] == [
        ("mindmodel", 4, False),
        ("mindmodel", 8, False),
        ("mindmodel", 32, True),
        ("bound", 4, False),
        ("bound", 8, False),
        ("bound", 32, False),
    ]
    assert rows[2]["peak_bytes"] == 17 * GIB and rows[2]["kernels_per_layer"] == 42
    assert rows[-1]["kernels_per_layer"] is rows[-1]["compile_cpu_s"] is None


def test_json_to_a_file(run, tmp_path):
    _, out, _ = run("--layers", "2", "--json", str(tmp_path / "graph.json"))
    rows = json.loads((tmp_path / "graph.json").read_text())["rows"]
    assert "peak_GiB" in out and [row["layers"] for row in rows] == [2, 2, 2]


@pytest.mark.parametrize("error", [ChildFailed("exit code 1"), LayoutError("rank 0 does not compile")])
def test_a_rival_that_fails_is_named_and_the_others_are_shown(run, error):
    def failing(recipe, rank):
        raise error

    code, out, err = run(failing=failing)
    assert code == 1 and "mindmodel" in out and "mindformers" not in out
    assert f"dp2tp4: mindformers failed: {error}" in err


def test_the_end_of_what_mindformers_printed_is_told(monkeypatch):
    def child(command, stdout, **keys):
        stdout.write(b"first line\nValueError: no such key\n")
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(bench_graph.dryrun, "environment", lambda level: {})
    monkeypatch.setattr(bench_graph.subprocess, "run", child)
    with pytest.raises(ChildFailed, match="exit code 1\n.*\nValueError: no such key"):
        bench_graph.RIVALS["mindformers"](LAYOUTS["dp2tp4"].recipe(2), 0)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--layout", "dp3"], "choose from 'dp2tp4'"),
        (["--rival", "megatron"], "choose from 'mindmodel'"),
        (["--layers", "4,8,12"], "'4,8,12' is not one or two numbers of layers. Use a form such as 32 or 4,8."),
        (["--layers", "0"], "'0' is not one or two numbers of layers"),
        (["--layers", "4,4"], "'4,4' is not one or two numbers of layers"),
        (["--layers", "2", "--layout", "dp4tp4pp4-last"], "Use multiples of 4."),
    ],
)
def test_what_cannot_be_compared_is_refused_with_what_can(options, message, capsys):
    with pytest.raises(SystemExit) as refused:
        bench_graph.main(options)
    assert refused.value.code == 2 and message in capsys.readouterr().err


def test_a_change_that_no_recipe_has_is_refused_before_anything_is_compiled(run):
    with pytest.raises(RecipeError, match="parallel.tq: unknown key"):
        run("--set", "parallel.tq=2")
    assert run.compiled == []


@pytest.mark.long
def test_both_sides_compile_by_the_same_dry_run(tmp_path):
    target = tmp_path / "graph.json"
    assert bench_graph.main(["--layout", "dp2tp4", "--layers", "1,2", "--set", *SMALL, "--json", str(target)]) == 0
    rows = json.loads(target.read_text())["rows"]
    names = "mindmodel", "mindformers", "bound"
    for mine, other, least in zip(*([row for row in rows if row["rival"] == name] for name in names), strict=True):
        assert mine["layers"] == other["layers"] == least["layers"]
        assert 0 < mine["kernels_per_layer"] < other["kernels_per_layer"]
        assert 0 < mine["optimizer_kernels_per_tensor"] < other["optimizer_kernels_per_tensor"]
        assert min(mine["wire_bytes"], other["wire_bytes"]) >= least["wire_bytes"]
