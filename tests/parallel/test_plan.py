from __future__ import annotations

import pytest

from mindmodel.errors import LayoutError
from mindmodel.parallel.mesh import Mesh, local_shape
from mindmodel.parallel.plan import (
    LayoutRule,
    ParameterRule,
    Plan,
    StageRule,
    match,
    match_all,
    matches,
    sharded_axes,
)


def rules(*paths):
    return tuple(ParameterRule(path=path, axes=(f"axis of {path}",)) for path in paths)


def test_a_star_stands_for_one_name():
    assert matches("layers.*.weight", "layers.17.weight")
    assert not matches("layers.*.weight", "layers.1.norm.weight")
    assert not matches("layers.*", "layers")
    assert not matches("layers.1", "layersx1")


def test_a_rule_may_name_several_paths_and_a_path_have_several_rules():
    first, second = rules("a.*", "a.x")
    assert match(["a.x", "a.y", "b"], (first, second), "layer") == [("a.x", first), ("a.y", first), ("a.x", second)]


def test_a_rule_that_names_nothing_is_refused_with_paths_like_it():
    with pytest.raises(LayoutError, match=r"'c\.weight' names no operator .* It has a\.weight, b\.weight\. Mend"):
        match(["a.weight", "b.weight", "b.bias"], rules("*.weight", "c.weight"), "operator")
    with pytest.raises(LayoutError, match=r"'c\.scale' names no operator of the model\. It has none alike\."):
        match(["a.weight"], rules("c.scale"), "operator")
    with pytest.raises(LayoutError, match=r"'c\.scale' names no operator"):
        match_all(["a.weight"], rules("a.weight", "c.scale"), "operator")


def test_every_path_finds_its_rule():
    first, second = rules("a.*", "b")
    assert match_all(["a.x", "b", "a.y"], (first, second), "operator") == {"a.x": first, "b": second, "a.y": first}


def test_a_path_without_a_rule_is_refused():
    with pytest.raises(LayoutError, match=r"plan: no rule for operator b, c; .*Add a rule .* mindmodel/parallel/plans"):
        match_all(["a", "b", "c"], rules("a"), "operator")


def test_of_many_paths_without_a_rule_some_are_named():
    with pytest.raises(LayoutError, match=r"no rule for operator p0, p1, p2, p3, p4, p5, p6, p7 and 3 more;"):
        match_all([f"p{i}" for i in range(11)], (), "operator")


def test_a_path_with_two_rules_is_refused():
    with pytest.raises(LayoutError, match=r"plan: operator a\.x has two rules, 'a\.\*' and '\*\.x'\. Keep one\."):
        match_all(["a.x"], rules("a.*", "*.x"), "operator")


PLAN = Plan(
    layouts=(LayoutRule(path="decoder.matmul", inputs=((None,),)),),
    parameters=rules("embedding.weight", "layers.*.weight", "unused.weight"),
    stages=(
        StageRule(path="decoder.embedding", stage=0),
        StageRule(path="decoder.layers.1", stage=1),
        StageRule(path="decoder.layers.11", stage=2),
    ),
)


def test_a_parameter_has_the_axes_of_its_rule_whatever_other_rules_name():
    assert PLAN.axes_of("layers.3.weight") == ("axis of layers.*.weight",)


def test_a_parameter_without_a_rule_is_refused():
    with pytest.raises(LayoutError, match="no rule for parameter head.weight"):
        PLAN.axes_of("head.weight")


def test_a_parameter_stands_in_the_stage_of_its_layer():
    stages = [PLAN.stage_of(f"{name}.weight") for name in ("embedding", "layers.1", "layers.11", "layers.11.norm")]
    assert stages == [0, 1, 2, 2]


def test_without_pipeline_stages_every_parameter_is_in_the_first():
    assert Plan(layouts=(), parameters=()).stage_of("layers.11.weight") == 0


MESH = Mesh(pp=2, dp=2, cp=3, tp=4)


def test_optimizer_sharding_cuts_the_first_dim_over_all_ranks_with_copies():
    assert sharded_axes(("tp", None), (48, 8), MESH) == (("tp", "dp", "cp"), None)
    assert sharded_axes((None, "tp"), (48, 8), MESH) == (("dp", "cp"), "tp")
    assert sharded_axes((None,), (48,), MESH) == (("dp", "cp", "tp"),)


def test_a_first_dim_that_does_not_divide_stays_whole():
    assert sharded_axes(("tp", None), (44, 8), MESH) == ("tp", None)
    assert sharded_axes((None,), (36,), MESH) == (None,)


def test_nothing_is_left_to_cut_where_all_ranks_hold_other_slices():
    axes = sharded_axes(("tp",), (8,), Mesh(tp=4))
    assert local_shape((8,), axes, Mesh(tp=4)) == (2,)
