"""What each piece of memory of a step is for, from MindSpore's record of them."""

from __future__ import annotations

import pytest

from mindmodel.dryrun.memory_trace import alive_at, kinds_of, peak_moment
from step_trace import NUM_TOKENS, PEAK_BYTES, PEAK_TIME, VOCAB_SIZE, written_trace


@pytest.fixture
def trace(tmp_path):
    return written_trace(tmp_path)


@pytest.fixture
def kinds(trace):
    return kinds_of(trace, VOCAB_SIZE, NUM_TOKENS)


def test_parameters_are_known_by_their_names(kinds):
    assert [kinds[key] for key in (1, 2, 3, 4)] == ["weights", "weights", "optimizer", "optimizer"]


def test_what_the_compiler_computed_is_a_constant(kinds):
    assert [kinds[key] for key in (5, 6)] == ["constants", "constants"]


def test_a_weight_in_another_dtype_or_gathered_is_a_copy_of_it(kinds):
    assert [kinds[key] for key in (11, 13, 21, 23)] == ["weight copies"] * 4


def test_logits_have_a_row_for_each_token_and_a_column_for_each_entry_of_the_vocabulary(kinds):
    assert [kinds[key] for key in (25, 31, 33, 41)] == ["activations", "logits", "logits", "logits"]


def test_what_the_optimizer_reads_is_a_gradient_and_what_only_casts_led_there_too(kinds):
    assert [kinds[key] for key in (51, 53, 55, 61, 65)] == [
        "gradients", "gradients", "activations", "gradients", "gradients"
    ]


def test_a_gradient_of_activations_is_no_gradient_of_weights(kinds):
    assert kinds[55] == "activations"


def test_the_peak_is_where_most_bytes_are_alive(trace):
    assert peak_moment(trace) == PEAK_TIME
    alive = alive_at(trace, PEAK_TIME)
    assert {block.key for block in alive} == {1, 2, 3, 4, 5, 6, 13, 15, 23, 25, 31, 33, 41}
    assert sum(block.num_bytes for block in alive) == PEAK_BYTES


def test_a_task_has_the_dtype_and_shape_of_what_it_makes(trace):
    (task,) = [task for task in trace.tasks if 53 in task.outputs]
    assert (task.operator, task.inputs, task.outputs) == ("Cast", (51, 5), (53,))
    assert trace.type_of(53) == ("Float32", (10, 6)) and trace.type_of(99) == ("", ())


def test_what_an_update_writes_in_place_was_not_made_by_it(trace):
    assert trace.makers[1].name == "layers.0.mlp.down.weight"
    assert [task.time for task in trace.users[1]] == [11, 75]
