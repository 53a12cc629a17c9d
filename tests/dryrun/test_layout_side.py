"""A layout as a side of a comparison (debug/traces/layout_side.py); here layouts are compiled once for all."""

from __future__ import annotations

import dataclasses
import random
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dry_runs import recipe_for
from graph_edits import is_gradient_sum, nodes_of, without
from mindmodel.cli.main import main
from mindmodel.data.loader import Batch
from mindmodel.debug.traces import layout_side
from mindmodel.debug.traces.compare import compare_traces
from mindmodel.debug.traces.inputs import Inputs
from mindmodel.debug.traces.inputs import inputs_of as random_inputs_of
from mindmodel.debug.traces.layout_side import num_devices_of, sized, trace_graphs, trace_layout
from mindmodel.debug.traces.trace import LOGITS, places, write_trace
from mindmodel.dryrun.prove import LR, batches_of, reference
from mindmodel.dryrun.scopes import GRADIENTS, place_of
from mindmodel.errors import TraceError
from mindmodel.recipe.dump import recipe_to_yaml
from mindmodel.recipe.load import load_recipe

RTOL = 1e-6  # of the largest entry: what float32 keeps
IN_ONE_PIECE = ["dp2 tp2", "cp2 tp2 sequence_parallel", "dp4 states", "tp2 recompute selective", "dp2 tp2 recompute",
                "tp4 copied heads"]
IN_PARTS = ["pp2 tied", "dp2 accumulated", "everything"]
SUMMED = ("dp4", "dp2 tp2", "dp2 cp2")
"""Layouts whose gradients are summed over ranks and stay whole."""


def inputs_of(partition):
    return Inputs(batch=batches_of(partition.recipe)[0], lr=LR)


def traced(partition, graphs=None, weights=None):
    graphs = graphs or partition.graphs
    return trace_graphs(partition.recipe, graphs, partition.slices, inputs_of(partition), weights)


def alone(partition, weights=None, inputs=None):
    """The same step on one device."""
    one, slices = partition.one.graph(), partition.one.slices()
    return trace_graphs(reference(partition.recipe), [one], [slices], inputs or inputs_of(partition), weights)


def apart(one, other, kind):
    """Largest difference of each array over its largest entry."""
    assert one.tensors[kind].keys() <= other.tensors[kind].keys()
    pairs = {name: (array, other.tensors[kind][name]) for name, array in one.tensors[kind].items()}
    return {name: float(np.abs(a - b).max() / np.abs(b).max()) for name, (a, b) in pairs.items()}


def assert_same(found, wanted, kinds):
    assert found.loss == pytest.approx(wanted.loss, rel=1e-12)
    assert found.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-12)
    for kind in kinds:
        assert max(apart(found, wanted, kind).values()) < RTOL


@pytest.mark.parametrize("layout", IN_ONE_PIECE)
def test_activations_gradients_and_weights_are_those_of_one_device(partition):
    found = traced(partition)
    assert_same(found, alone(partition), ("activation", "weight_grad", "weight"))
    in_slices = {LOGITS} if partition.recipe.parallel.recompute != "none" else set()
    assert places(partition.recipe.model).keys() - found.tensors["activation"].keys() == in_slices
    assert found.tensors["weight_grad"].keys() == found.tensors["weight"].keys() == partition.before.keys()
    assert found.source == f"{len(partition.graphs)} ranks executed in NumPy"


@pytest.mark.parametrize("layout", IN_PARTS)
def test_micro_batches_and_stages_give_gradients_and_weights(partition):
    found = traced(partition)
    assert_same(found, alone(partition), ("weight_grad", "weight"))
    assert found.tensors["activation"] == {} and found.tensors["weight"].keys() == partition.before.keys()


def parameter_of(node):
    """Whose gradient a sum is."""
    place = place_of(node.scope)
    return {"embedding.embedding": "embedding.weight", "loss.logits": "head.weight"}.get(place, f"{place}.weight")


def sums_of_gradients(partition):
    """The nodes of every rank, for each sum."""
    sums = [[node for node in nodes_of(graph, "AllReduce") if is_gradient_sum(node)] for graph in partition.graphs]
    return list(zip(*sums, strict=True))


def without_sum(partition, nodes):
    """The graphs of all ranks without these."""
    return [
        without(graph, "AllReduce", lambda other, node=node: other.name == node.name)
        for graph, node in zip(partition.graphs, nodes)
    ]


@pytest.mark.parametrize("layout", ["dp2 tp2"])
def test_a_gradient_without_its_sum_is_named_whichever_it_is(partition):
    wanted = alone(partition)
    assert compare_traces(traced(partition), wanted).first is None
    assert len(sums_of_gradients(partition)) > 5
    for nodes in sums_of_gradients(partition):
        first = compare_traces(traced(partition, without_sum(partition, nodes)), wanted).first
        assert (first.kind, first.place) == ("weight_grad", parameter_of(nodes[0]))
        assert first.typical > 0.1


@pytest.fixture
def compared(partition, monkeypatch, tmp_path, capsys):
    """Function: exit code and last line of `debug compare` of one device and the layout, compiled to these graphs."""
    monkeypatch.chdir(tmp_path)
    Path("layout.yaml").write_text(recipe_to_yaml(partition.recipe))

    def command(seed, graphs):
        @contextmanager
        def compiled(jobs, at_once, progress=None):
            made = zip(jobs, graphs, partition.slices, strict=True)
            yield {job.name: SimpleNamespace(graph=lambda g=graph: g, slices=lambda s=slices: s)
                   for job, graph, slices in made}

        monkeypatch.setattr(layout_side, "compiled", compiled)
        inputs = random_inputs_of(load_recipe("layout.yaml", [f"train.seed={seed}"]))
        write_trace(alone(partition, inputs=inputs), Path("alone"))
        code = main(["debug", "compare", "alone", "layout.yaml", f"train.seed={seed}"])
        return code, capsys.readouterr().out.splitlines()[-1]

    return command


@pytest.mark.parametrize("seed, layout", [(seed, random.Random(str(seed)).choice(SUMMED)) for seed in range(5)])
def test_a_gradient_without_its_sum_is_named_by_the_command(partition, compared, seed):
    code, said = compared(seed, partition.graphs)
    assert code == 0 and said.startswith(("equal ", "agree "))
    nodes = random.Random(seed).choice(sums_of_gradients(partition))
    code, said = compared(seed, without_sum(partition, nodes))
    assert code == 1 and said.startswith(f"part at     {parameter_of(nodes[0])}, weight's gradient: ")


@pytest.mark.parametrize("layout", ["dp2 tp2"])
@pytest.mark.parametrize("place", ["embedding.embedding", "layers.0.attention.out", "layers.1.mlp.down"])
def test_an_activation_without_its_sum_is_named(partition, place):
    def is_sum(node):
        return not node.scope.startswith(GRADIENTS) and place_of(node.scope) == place

    faulty = [without(graph, "AllReduce", is_sum) for graph in partition.graphs]
    first = compare_traces(traced(partition, faulty), alone(partition)).first
    assert (first.kind, first.place) == ("activation", place.removesuffix(".embedding"))


@pytest.mark.parametrize("layout", ["dp2 tp2"])
def test_copies_of_which_one_is_wrong_are_a_difference_whichever_it_is(partition):
    wanted = alone(partition)
    for rank in range(4):
        slices = list(partition.slices)
        slices[rank] = {**slices[rank], "norm.weight": slices[rank]["norm.weight"] * np.float32(1.01)}
        found = trace_graphs(partition.recipe, partition.graphs, slices, inputs_of(partition))
        assert compare_traces(found, wanted).first.place == "norm"


@pytest.mark.parametrize("layout", ["dp2 tp2", "dp4 states"])
def test_whole_weights_are_cut_for_the_ranks(partition):
    weights = {name: array * np.float32(1.5) for name, array in partition.before.items()}
    found = traced(partition, weights=weights)
    assert_same(found, alone(partition, weights), ("weight_grad", "weight"))
    assert abs(found.loss - traced(partition).loss) > 1e-3


@pytest.mark.parametrize("layout", ["dp2 tp2"])
def test_a_short_batch_is_filled_up_and_a_long_one_refused(partition):
    inputs = inputs_of(partition)
    fewer, more = (
        dataclasses.replace(inputs, batch=Batch(ids=np.resize(inputs.batch.ids, (rows, 16)),
                                                labels=np.resize(inputs.batch.labels, (rows, 16))))
        for rows in (7, 9)
    )
    found = trace_graphs(partition.recipe, partition.graphs, partition.slices, fewer)
    one = trace_graphs(reference(partition.recipe), [partition.one.graph()], [partition.one.slices()], fewer)
    assert_same(found, one, ("activation", "weight_grad"))
    assert len(found.tensors["activation"]["embedding"]) == found.batch.ids.size == 7 * 16
    with pytest.raises(TraceError, match=r"its batch is \[8, 16\], and \[9, 16\] tokens are given"):
        trace_graphs(partition.recipe, partition.graphs, partition.slices, more)


@pytest.mark.parametrize("layout", ["dp2 tp2"])
def test_all_ranks_are_compiled_and_executed(partition, monkeypatch):
    asked = []

    @contextmanager
    def compiled(jobs, at_once, progress=None):
        asked.extend(job.rank for job in jobs)
        yield {job.name: partition.ranks[job.rank] for job in jobs}

    monkeypatch.setattr(layout_side, "compiled", compiled)
    found = trace_layout(partition.recipe, inputs_of(partition))
    assert asked == [0, 1, 2, 3] and found.loss == traced(partition).loss


def recipe_with(model=(), **parallel):
    sizes = {"hidden_size": 32, "num_layers": 1, "num_heads": 16, "ffn_size": 64, **dict(model)}
    return recipe_for(sizes, seq_len=16, sequences=32, **parallel)


def test_degrees_are_filled_in():
    recipe = sized(recipe_with({"vocab_size": 64}, tp=2))
    assert (recipe.parallel.dp, recipe.parallel.tp, num_devices_of(recipe)) == (1, 2, 2)


@pytest.mark.parametrize("recipe, said", [
    (recipe_with({"vocab_size": 64}, dp=16, tp=2), "a layout of 32 devices: up to 16 are executed rank by rank"),
    (recipe_with(tp=2), "only its tokenizer knows the vocabulary's size. Give model.vocab_size."),
    (recipe_with({"vocab_size": 10**6}, tp=2), r"6\d,\d+,\d+ parameters; up to 20,000,000 .* Add --shrink"),
])
def test_what_cannot_be_executed_is_refused(recipe, said):
    with pytest.raises(TraceError, match=said):
        sized(recipe)
