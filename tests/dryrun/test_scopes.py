"""What the names that the compiler gives to operators tell of them."""

from __future__ import annotations

import pytest

from mindmodel.dryrun.scopes import of_any_layer, operator_of, part_of, place_of


@pytest.mark.parametrize(
    "scope, place",
    [
        ("Default/network-Step/network-Loss/decoder-Decoder/layers-CellList/3-Block/mlp-MLP/down-Linear/l-LinearAscend",
         "layers.3.mlp.down"),
        ("Default/network-Step/decoder-Decoder", "decoder"),
        ("Gradients/Default/network-Step/loss-HeadLoss/h-HeadLossAscend/Grad_Exp", "loss"),
        ("Default", "step"),
    ],
)
def test_a_place_is_named_as_parameters_are(scope, place):
    assert place_of(f"{scope}/MatMul-op0") == place


@pytest.mark.parametrize(
    "scope, operator",
    [("Default/decoder-Decoder/MatMul-op12", "MatMul"), ("Gradients/Default/Grad_Exp/Mul", "Mul"),
     ("layers.0.mlp.down.weight", "layers.0.mlp.down.weight")],
)
def test_an_operator_is_the_end_of_its_scope_without_its_number(scope, operator):
    assert operator_of(scope) == operator


def test_layers_and_what_stands_outside_of_them_are_parts_of_the_model():
    assert [part_of(place) for place in ("layers.12.mlp.down", "loss.logits", "norm")] == ["layers.12", "loss", "norm"]
    assert of_any_layer("first_moment.layers.12.mlp.down") == "first_moment.layers.*.mlp.down"
