"""Cells by their place, and the line at which a step failed. The debugger itself is met in tests/cli."""

from __future__ import annotations

import pytest

from mindmodel.errors import GraphError
from mindmodel.recipe.rules import with_defaults


@pytest.fixture
def network(runtime, small_recipe):
    from mindmodel.models.decoder import Decoder, DecoderLoss

    model = with_defaults(small_recipe).model
    return DecoderLoss(Decoder(model, small_recipe.data.seq_len), model.vocab_size)


def test_a_cell_has_the_place_that_a_layout_and_a_checkpoint_know_it_by(network):
    from mindmodel.debug.breakpoints import places

    cells = places(network)
    assert cells["layers.0.attention"] is network.decoder.layers[0].attention
    assert {"embedding", "layers.0.mlp.down", "norm", "head", "loss"} <= set(cells)


@pytest.mark.parametrize(
    "place, hint", [("layer.0.attention", "Did you mean 'layers.0.attention'?"), ("x", "There are embedding, layers,")]
)
def test_a_place_without_a_cell_is_refused_with_what_there_is(network, place, hint):
    from mindmodel.debug.breakpoints import break_at

    with pytest.raises(GraphError) as caught:
        break_at(network, place)
    assert f"--break {place}: the model has no such Cell. {hint}" in str(caught.value)


def test_the_failing_line_is_the_innermost_outside_of_mindspore():
    from mindspore import Tensor, ops

    from mindmodel.debug.breakpoints import failing_line

    with pytest.raises(ValueError) as caught:
        ops.reshape(Tensor([1.0, 2.0]), (3,)).asnumpy()
    line = failing_line(caught.value)
    assert "test_breakpoints.py:" in line and line.endswith(": ops.reshape(Tensor([1.0, 2.0]), (3,)).asnumpy()")
