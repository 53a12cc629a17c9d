"""Every layout computes what one device computes: from the graphs that MindSpore's compiler cut, for all ranks."""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager

import numpy as np
import pytest

from mindmodel.dryrun import prove as prove_module
from mindmodel.dryrun.prove import LR, NUM_STEPS, TOLERANCE, batches_of, compare, prove, reference
from mindmodel.errors import LayoutError


def test_a_layout_computes_what_one_device_computes(partition):
    proof = partition.proof()
    assert proof.holds, proof
    assert max(proof.loss, proof.gradient, proof.weight, proof.copies) <= TOLERANCE


def test_what_is_compared_is_worth_comparing(partition):
    """Losses of three different batches, a gradient for every weight, and weights that have moved."""
    alone, names = partition.alone, partition.before.keys()
    assert len({step[0] for step in alone.losses}) == NUM_STEPS
    assert {name for rank in partition.execution.moments for name in rank} == names
    for name in names:
        assert np.abs(alone.moments[0][name]).max() > 1e-6, name
        assert np.abs(alone.weights[0][name] - partition.before[name]).max() > LR / 100, name


def proof_of(partition, **changed):
    """With another thing computed than what the layout computes."""
    return compare(
        partition.recipe, partition.alone, dataclasses.replace(partition.execution, **changed), partition.before
    )


def test_a_norm_may_be_zero():
    assert prove_module._apart([[0.0], [0.0]], [[0.0, 0.0], [0.0, 0.5]]) == 0.5


def with_one(ranks, rank, name, array):
    return [{**arrays, name: array} if number == rank else arrays for number, arrays in enumerate(ranks)]


@pytest.mark.parametrize("layout", ["dp2 tp2"])
@pytest.mark.parametrize("what", ["losses", "norms"])
@pytest.mark.parametrize("factor", [1 + 1e-9, np.nan])
def test_the_loss_and_the_norm_of_every_rank_and_step_are_compared(partition, what, factor):
    for step in range(NUM_STEPS):
        for rank in range(4):
            numbers = np.array(getattr(partition.execution, what))
            numbers[step, rank] *= factor
            proof = proof_of(partition, **{what: numbers.tolist()})
            assert not proof.holds and proof.loss > TOLERANCE
            assert proof.worst[0] == {"losses": "loss", "norms": "gradient norm"}[what]


@pytest.mark.parametrize("layout", ["dp2 tp2"])
@pytest.mark.parametrize("what, kind", [("moments", "gradient"), ("weights", "weight")])
def test_every_slice_is_compared_and_the_worst_tensor_named(partition, what, kind):
    name, ranks = "layers.1.mlp.down.weight", getattr(partition.execution, what)
    for rank in range(4):
        changed = ranks[rank][name].copy()
        changed[3, 5] += np.abs(changed).max() * 1e-7
        proof = proof_of(partition, **{what: with_one(ranks, rank, name, changed)})
        assert not proof.holds
        assert max(getattr(proof, kind), proof.copies) > TOLERANCE
    assert proof.worst[0].endswith(name)


@pytest.mark.parametrize("layout", ["dp2 tp2"])
def test_what_is_not_a_number_is_a_difference_on_any_rank(partition):
    name, ranks = "norm.weight", partition.execution.weights
    for rank in range(4):
        proof = proof_of(partition, weights=with_one(ranks, rank, name, ranks[rank][name] * np.nan))
        assert not proof.holds and np.inf in (proof.weight, proof.copies)


@pytest.mark.parametrize("layout", ["pp2"])
def test_a_weight_that_no_rank_of_its_stage_holds_is_a_difference(partition):
    without = [{name: array for name, array in rank.items() if name != "head.weight"} for rank in
               partition.execution.weights]
    proof = proof_of(partition, weights=without)
    assert proof.weight == np.inf and proof.worst == ("weight head.weight", np.inf)


@pytest.mark.parametrize("layout", ["dp2 tp2"])
def test_a_slice_of_another_shape_is_refused(partition):
    ranks, name = partition.execution.moments, "embedding.weight"
    with pytest.raises(LayoutError, match=r"embedding.weight: rank 2 holds \[31, 32\], and by the plan \[32, 32\]\."):
        proof_of(partition, moments=with_one(ranks, 2, name, ranks[2][name][1:]))


@pytest.mark.parametrize("layout", ["dp2 tp2"])
def test_batches_are_the_same_every_time_and_some_labels_do_not_count(partition):
    batches, others = batches_of(partition.recipe), batches_of(partition.recipe)
    assert len(batches) == NUM_STEPS
    for batch, other in zip(batches, others):
        np.testing.assert_array_equal(batch.ids, other.ids)
        assert batch.labels.shape == batch.ids.shape == (8, 16)
        assert 0 < (batch.labels < 0).mean() < 0.2 and batch.ids.max() < 64


@pytest.mark.parametrize("layout", ["everything"])
def test_the_reference_is_one_device_with_the_batch_in_one_piece(partition):
    alone = reference(partition.recipe)
    parallel = dataclasses.asdict(alone.parallel)
    degrees = [parallel.pop(degree) for degree in ("pp", "dp", "cp", "tp")]
    assert degrees == [1, 1, 1, 1] and parallel["micro_batches"] == 1 and parallel["recompute"] == "none"
    assert (alone.model, alone.train, alone.optim) == (
        partition.recipe.model, partition.recipe.train, partition.recipe.optim
    )


@pytest.mark.parametrize("layout", ["dp2 accumulated"])
def test_a_proof_compiles_all_ranks_and_one_device(partition, monkeypatch):
    jobs = []

    @contextmanager
    def compiled(asked, at_once, progress=None):
        jobs.extend(asked)
        ranks = {(rank.job.recipe, rank.job.rank): rank for rank in [*partition.ranks, partition.one]}
        yield {job.name: ranks[job.recipe, job.rank] for job in asked}

    monkeypatch.setattr(prove_module, "compiled", compiled)
    assert prove(partition.recipe) == partition.proof()
    assert [job.rank for job in jobs] == [0, 0, 1]
