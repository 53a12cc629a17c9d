"""Cells by their place, and the line at which a step failed. The debugger itself is met in tests/cli."""

from __future__ import annotations

import re

import pytest

from mindmodel.debug.breakpoints import break_at, failure_named, places
from mindmodel.errors import GraphError, TrainingError
from mindmodel.recipe.rules import with_defaults


@pytest.fixture
def network(runtime, small_recipe):
    from mindmodel.models.decoder import Decoder, DecoderLoss

    model = with_defaults(small_recipe).model
    return DecoderLoss(Decoder(model, small_recipe.data.seq_len), model.vocab_size)


def test_a_cell_has_the_place_that_a_layout_and_a_checkpoint_know_it_by(network):
    cells = places(network)
    assert cells["layers.0.attention"] is network.decoder.layers[0].attention
    assert {"embedding", "layers.0.mlp.down", "norm", "head", "loss"} <= set(cells)


@pytest.mark.parametrize(
    "place, hint", [("layer.0.attention", "Did you mean 'layers.0.attention'?"), ("x", "There are embedding, layers,")]
)
def test_a_place_without_a_cell_is_refused_with_what_there_is(network, place, hint):
    with pytest.raises(GraphError) as caught:
        break_at(network, place)
    assert f"--break {place}: the model has no such Cell. {hint}" in str(caught.value)


def test_the_failing_line_is_the_innermost_outside_of_mindspore(runtime):
    from mindspore import Tensor, ops

    with pytest.raises(TrainingError) as caught, failure_named(4):
        ops.reshape(Tensor([1.0, 2.0]), (3,)).asnumpy()
    message = str(caught.value)
    assert message.startswith("step 4: ValueError: ")
    assert re.search(r"test_breakpoints\.py:\d+, in test_the_failing_line\w+: ops\.reshape\(", message)
    assert message.endswith("The same command with --debug shows all calls.")
