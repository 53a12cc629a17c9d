from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from mindmodel.errors import LayoutError
from mindmodel.parallel.mesh import (
    Mesh,
    balanced_stages,
    local_shape,
    local_slice,
    mesh_of,
    names,
    stage_of,
)
from mindmodel.recipe.schema import AXES, ParallelSection

MESHES = [Mesh(), Mesh(dp=4), Mesh(pp=2, dp=3, cp=2, tp=4), Mesh(pp=3, tp=2), Mesh(cp=5, tp=2)]


def test_tp_neighbours_are_neighbours_and_stages_are_furthest_apart():
    mesh = Mesh(pp=2, dp=2, cp=2, tp=2)
    assert [mesh.coordinates(rank) for rank in (0, 1, 2, 4, 8)] == [
        {"pp": 0, "dp": 0, "cp": 0, "tp": 0},
        {"pp": 0, "dp": 0, "cp": 0, "tp": 1},
        {"pp": 0, "dp": 0, "cp": 1, "tp": 0},
        {"pp": 0, "dp": 1, "cp": 0, "tp": 0},
        {"pp": 1, "dp": 0, "cp": 0, "tp": 0},
    ]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_every_rank_has_coordinates_of_its_own(mesh):
    assert mesh.num_devices == mesh.pp * mesh.dp * mesh.cp * mesh.tp
    for rank in range(mesh.num_devices):
        assert mesh.rank(**mesh.coordinates(rank)) == rank
        assert stage_of(rank, mesh) == mesh.coordinates(rank)["pp"]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_groups_of_an_axis_share_out_all_ranks(mesh):
    for moving in itertools.chain.from_iterable(itertools.combinations(AXES, count) for count in range(5)):
        groups = {mesh.group(rank, moving) for rank in range(mesh.num_devices)}
        assert sorted(itertools.chain(*groups)) == list(range(mesh.num_devices))
        assert {len(group) for group in groups} == {mesh.degree(moving)}
        for group in groups:
            assert mesh.axes_of(group) == tuple(name for name in moving if getattr(mesh, name) > 1)


def test_a_group_has_a_rank_itself_in_it():
    assert Mesh(dp=2, tp=2).group(2, "dp") == (0, 2)
    assert Mesh(dp=2, tp=2).group(2, "tp") == (2, 3)
    assert Mesh(dp=2, tp=2).group(2, None) == (2,)


def test_a_dim_may_be_cut_over_no_axis_one_or_several():
    mesh = Mesh(dp=2, cp=3, tp=5)
    assert [names(axis) for axis in (None, "tp", ("dp", "cp"))] == [(), ("tp",), ("dp", "cp")]
    assert [mesh.degree(axis) for axis in (None, "tp", ("dp", "cp"))] == [1, 5, 6]


@pytest.mark.parametrize("axes", [(("dp", "cp"), "tp"), ("tp", ("cp", "dp")), (None, None), ("cp", None)], ids=str)
def test_slices_cover_a_tensor_as_often_as_the_other_ranks_hold_copies(axes):
    mesh, shape = Mesh(pp=2, dp=2, cp=3, tp=2), (12, 24)
    count = np.zeros(shape, np.int64)
    for rank in range(mesh.num_devices):
        place = local_slice(shape, axes, mesh, rank)
        assert count[place].shape == local_shape(shape, axes, mesh)
        count[place] += 1
    cut = math.prod(mesh.degree(axis) for axis in axes)
    assert (count == mesh.num_devices // cut).all()


def test_of_several_axes_on_a_dim_the_first_is_outermost():
    mesh = Mesh(dp=2, tp=2)
    rows = [local_slice((8,), (("tp", "dp"),), mesh, rank)[0].start for rank in range(4)]
    assert rows == [0, 4, 2, 6]


def test_a_dim_that_cannot_be_cut_is_refused():
    match = r"tensor \[8, 6\]: dim 1 of size 6 cannot be cut over dp\*tp=4\. Use degrees whose product divides 6\."
    for function in (local_shape, lambda *given: local_slice(*given, 0)):
        with pytest.raises(LayoutError, match=match):
            function((8, 6), (None, ("dp", "tp")), Mesh(dp=2, tp=2))


def test_the_mesh_of_a_recipe_has_its_degrees():
    assert mesh_of(ParallelSection(dp=2, tp=3, pp=5, cp=7)) == Mesh(pp=5, dp=2, cp=7, tp=3)


@pytest.mark.parametrize(
    "layers, stages, expected",
    [(8, 4, (2, 2, 2, 2)), (9, 4, (2, 3, 2, 2)), (10, 4, (2, 3, 3, 2)), (5, 2, (3, 2)), (7, 3, (2, 3, 2))],
)
def test_layers_that_do_not_divide_go_to_the_middle_stages(layers, stages, expected):
    assert balanced_stages(layers, stages) == expected


def test_what_the_last_stage_computes_beside_its_layers_counts():
    assert balanced_stages(32, 2, head=0.65) == (16, 16)
    assert balanced_stages(32, 2, head=2.4) == (17, 15)
    assert balanced_stages(4, 4, head=9.0) == (1, 1, 1, 1)


def test_given_stages_stay():
    assert balanced_stages(7, 2, (2, 5)) == (2, 5)
