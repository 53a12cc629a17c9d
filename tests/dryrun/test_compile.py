"""Compiling ranks in a process beside this one: what comes back, and what is left when it fails."""

from __future__ import annotations

import math
import sys
import tempfile

import numpy as np
import pytest

from mindmodel.dryrun import compile as compile_module
from mindmodel.dryrun.compile import compiled
from mindmodel.dryrun.jobs import LOG_NAME, Job
from mindmodel.dryrun.prove import MOMENT, axes_by_name
from mindmodel.errors import LayoutError
from mindmodel.parallel.mesh import local_shape, local_slice, stage_of
from mindmodel.parallel.plans.decoder import decoder_plan
from mindmodel.recipe.rules import with_degrees


def held(partition):
    """(rank, names of the parameters of its stage)."""
    plan = decoder_plan(partition.recipe.model, partition.recipe.parallel)
    for rank in range(partition.mesh.num_devices):
        stage = stage_of(rank, partition.mesh)
        yield rank, [name for name in partition.before if plan.stage_of(name) == stage]


def test_the_slices_that_the_compiler_cuts_are_those_of_the_plan(partition):
    axes = axes_by_name(partition.recipe, {name: array.shape for name, array in partition.before.items()})
    for rank, parameters in held(partition):
        slices = partition.slices[rank]
        assert parameters
        for name in parameters:
            whole = partition.before[name]
            place = local_slice(whole.shape, axes[name], partition.mesh, rank)
            np.testing.assert_array_equal(slices[name], whole[place], err_msg=f"rank {rank}, {name}")
            assert slices[f"{MOMENT}{name}"].shape == slices[name].shape


def test_so_are_the_layouts_that_it_reports(partition):
    """A device matrix, and for each dim the place in it, from the right, of what the dim is cut over; -1 is whole.

    The first dim of a weight that is gathered by a function of slices has several places, one for each axis.
    """
    plan = decoder_plan(partition.recipe.model, partition.recipe.parallel)
    sharded = axes_by_name(partition.recipe, {name: array.shape for name, array in partition.before.items()})
    for rank, parameters in held(partition):
        layouts = partition.ranks[rank].result["layouts"]
        for name in parameters:
            shape, (matrix, places) = partition.before[name].shape, layouts[name]
            pieces = [1 if place == -1 else matrix[len(matrix) - 1 - place] for place in places]
            axes = sharded[name] if len(places) > len(shape) else plan.axes_of(name)
            pieces[:-1] = [math.prod(pieces[:-1])] if len(shape) > 1 else []
            expected = local_shape(shape, axes, partition.mesh)
            assert tuple(size // count for size, count in zip(shape, pieces)) == expected, (rank, name)


@pytest.mark.parametrize("layout", ["dp2 tp2"])
def test_what_a_rank_cost_is_reported(partition):
    for rank in partition.ranks:
        assert 0 < rank.result["seconds"] < 600 and 0 < rank.result["cpu_s"] < 600
        assert 1e8 < rank.result["host_bytes"] < 1e10


@pytest.fixture
def job(small_recipe):
    return Job(name="rank-0", recipe=with_degrees(small_recipe, dp=1), rank=0, level=0)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary folders are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "code, match",
    [
        (1, "rank 0 of 1 does not compile: .*operator Add init failed"),
        (-9, "rank 0 of 1: its compilation was killed, most likely because .* memory ran out. Free memory, or use"),
        (-11, r"rank 0 of 1: its compilation was ended by signal 11 \(SIGSEGV\)"),
    ],
)
def test_a_rank_that_does_not_compile_is_named_with_the_reason(standin, job, temporary, monkeypatch, code, match):
    def child(folder, *_):
        (folder / job.name / LOG_NAME).write_text("RuntimeError: Failure: operator Add init failed\n")
        return {job.name: code}

    monkeypatch.setattr(compile_module, "_run_child", child)
    with pytest.raises(LayoutError, match=match):
        with compiled([job], 1):
            pass
    assert not list(temporary.iterdir())


def test_a_process_that_dies_is_reported_and_leaves_nothing(standin, job, temporary, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(LayoutError, match="the process that compiles ended with code 1: "):
        with compiled([job], 1):
            pass
    assert not list(temporary.iterdir())
