from __future__ import annotations

import re
from pathlib import Path

import pytest

import mindmodel
from mindmodel.errors import LayoutError
from mindmodel.parallel.mesh import Mesh
from mindmodel.parallel.plan import LayoutRule, Plan, RecomputeRule, StageRule

PARALLEL_API = re.compile(r"\.shard\(|pipeline_stage|\brecompute\(|AutoParallel")
MESH = Mesh(dp=2, cp=2, tp=4)


@pytest.fixture
def network(runtime):
    """Two branches, each with a product, and one operator at the top."""
    from mindspore import nn, ops

    class Branch(nn.Cell):
        def __init__(self):
            super().__init__()
            self.matmul, self.unused = ops.MatMul(), None

    class Network(nn.Cell):
        def __init__(self):
            super().__init__()
            self.add, self.branches = ops.Add(), nn.CellList([Branch(), Branch()])

    return Network()


@pytest.fixture
def apply(network):
    """Function: the plan of these rules applied to the network."""
    from mindmodel.parallel.apply import apply_plan

    return lambda *layouts, **rules: apply_plan(network, Plan(layouts=layouts, parameters=(), **rules), MESH)


ADD = LayoutRule(path="add", inputs=((("dp", "cp"), None), (("dp", "cp"), None)))
PRODUCTS = LayoutRule(path="branches.*.matmul", inputs=(("dp", "tp"), ("tp", None)), outputs=(("dp", None),))


def test_operators_are_found_by_their_path(network):
    from mindmodel.parallel.apply import operators

    assert [path for path, _ in operators(network)] == ["add", "branches.0.matmul", "branches.1.matmul"]


def test_operators_are_cut_by_the_degrees_of_their_rules_axes(network, apply):
    apply(ADD, PRODUCTS)
    assert network.add.in_strategy == ((4, 1), (4, 1))
    for branch in network.branches:
        assert branch.matmul.in_strategy == ((2, 4), (4, 1))
        assert branch.matmul.out_strategy == ((2, 1),)


def test_an_operator_without_a_rule_is_refused(apply):
    with pytest.raises(LayoutError, match="no rule for operator branches.0.matmul, branches.1.matmul; between neigh"):
        apply(ADD)


def test_a_rule_that_names_nothing_is_refused(apply):
    with pytest.raises(LayoutError, match="'gone.matmul' names no operator .* It has branches.0.matmul, branches.1"):
        apply(ADD, PRODUCTS, LayoutRule(path="gone.matmul", inputs=()))
    with pytest.raises(LayoutError, match="'branches.2' names no layer"):
        apply(ADD, PRODUCTS, stages=(StageRule(path="branches.2", stage=0),))
    with pytest.raises(LayoutError, match="'branches.3' names no layer"):
        apply(ADD, PRODUCTS, recompute=(RecomputeRule(path="branches.3"),))


def test_an_operator_with_two_rules_is_refused(apply):
    with pytest.raises(LayoutError, match=r"operator branches\.0\.matmul has two rules"):
        apply(ADD, PRODUCTS, LayoutRule(path="*.0.matmul", inputs=()))


def test_cells_have_their_stage_and_chunk_and_are_computed_again(network, apply):
    stages = tuple(StageRule(path=f"branches.{index}", stage=index, chunk=1) for index in range(2))
    apply(ADD, PRODUCTS, stages=stages, recompute=(RecomputeRule(path="branches.1"),))
    assert [branch.pipeline_stage for branch in network.branches] == [0, 1]
    assert [branch.pipeline_segment for branch in network.branches] == [1, 1]
    assert [branch.get_flags().get("output_recompute") for branch in network.branches] == [None, False]


def test_one_file_calls_the_parallel_api():
    package = Path(mindmodel.__file__).parent
    users = [path for path in package.rglob("*.py") if PARALLEL_API.search(path.read_text(encoding="utf-8"))]
    assert [path.relative_to(package).as_posix() for path in users] == ["parallel/apply.py"]
