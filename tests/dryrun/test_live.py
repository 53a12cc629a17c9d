"""What is alive at the peak: by kind, by part of the model, alike tensors together; and over the step."""

from __future__ import annotations

import dataclasses
import json

import pytest

from mindmodel.dryrun import live as live_module
from mindmodel.dryrun.live import live_of
from mindmodel.dryrun.scopes import PlacedKernel
from step_trace import NUM_TOKENS, PEAK_BYTES, STAYING_BYTES, VOCAB_SIZE, live_in, written_trace

UNSEEN = 44
"""Bytes that MindSpore measured and no block accounts for."""


@pytest.fixture
def live(tmp_path):
    return live_in(tmp_path, UNSEEN)


def group(live, kind, made_by):
    (found,) = [group for group in live.groups if (group.kind, group.made_by) == (kind, made_by)]
    return found


def test_the_peak_is_named_by_its_kernel(live):
    assert live.peak_kernel == PlacedKernel(operator="Mul", place="loss", phase="backward")
    assert str(live.peak_kernel) == "Mul of loss, backward"
    assert live.peak_index == 8


def test_kinds_at_the_peak_add_up_to_what_was_measured(live):
    assert live.by_kind == {
        "weights": 200, "optimizer": 160, "constants": 16, "weight copies": 180, "gradients": 0, "activations": 80,
        "logits": 120, "other": UNSEEN,
    }
    assert sum(live.by_kind.values()) == live.peak_bytes


def test_parts_of_the_model_add_up_too_in_the_order_of_the_model(live):
    totals = {part: sum(kinds.values()) for part, kinds in live.by_part.items()}
    layer = 100 + 80 + 90 + 40
    assert list(totals.items()) == [("embedding", 7), ("layers.0", layer), ("layers.1", layer), ("loss", 120),
                                    ("rest", 9 + UNSEEN)]
    assert live.by_part["layers.1"]["weight copies"] == 90


def test_tensors_alike_in_all_layers_are_one_group(live):
    copies = group(live, "weight copies", "Cast > AllGather")
    assert (copies.place, copies.count, copies.num_bytes) == ("layers.*.mlp.down.weight", 2, 180)
    assert (copies.dtype, copies.shape, copies.phase) == ("bf16", (10, 6), "forward")


def test_tensors_that_are_last_read_elsewhere_are_not_alike(live):
    reads = {(one.last_read, one.count) for one in live.groups if one.kind == "activations"}
    assert reads == {("MatMul, backward", 1), ("MatMul, forward", 1)}


def test_groups_add_up_to_what_blocks_account_for_largest_first(live):
    sizes = [one.num_bytes for one in live.groups]
    assert sum(sizes) == PEAK_BYTES and sizes == sorted(sizes, reverse=True)


def test_groups_come_in_the_same_order_whichever_block_the_compiler_took_first(live, tmp_path):
    trace = written_trace(tmp_path)
    turned = dataclasses.replace(trace, blocks=dict(reversed(trace.blocks.items())))
    assert live_of(turned, PEAK_BYTES, VOCAB_SIZE, NUM_TOKENS).groups == live.groups


def test_what_is_held_though_no_kernel_reads_it_again_is_counted(live):
    unread = {(one.kind, one.num_bytes): one.unread_bytes for one in live.groups if one.unread_bytes}
    assert unread == {("activations", 40): 40, ("constants", 9): 9}


def test_how_long_a_tensor_is_held_is_counted_in_kernels(live):
    assert group(live, "logits", "Exp").num_kernels == 2
    assert group(live, "weights", "").num_kernels is None


def test_a_gradient_belongs_to_its_parameter_whichever_layer_its_operator_is_named_after(live):
    assert [kernel.place for kernel in live.kernels[9:13]] == [
        "layers.1.mlp.down", "layers.1.mlp.down", "layers.0.mlp.down", "layers.0.mlp.down"
    ]


def test_events_and_names_are_no_kernels(live):
    assert [kernel.operator for kernel in live.kernels[:3]] == ["Cast", "AllGather", "MatMul"]
    assert len(live.kernels) == 16


def test_the_curve_has_the_bytes_of_each_kernel(live):
    totals = [sum(column) for column in zip(*live.curve.values())]
    assert totals[0] == STAYING_BYTES + 50
    assert max(totals) == totals[live.peak_index] == PEAK_BYTES
    assert live.curve["gradients"][10] == 30 + 60


def test_the_highest_of_each_phase_is_told(live):
    assert live.by_phase == {"forward": 716, "backward": PEAK_BYTES, "optimizer": 496}


def test_of_kernels_that_share_a_column_the_highest_is_shown(live, monkeypatch):
    monkeypatch.setattr(live_module, "MAX_COLUMNS", 4)
    columns = live.columns()
    assert columns.width == 4 and len(columns.kernels) == 4
    assert live.peak_index in columns.kernels
    assert max(map(sum, zip(*columns.by_kind.values()))) == PEAK_BYTES


def test_for_scripts_it_is_json(live):
    found = json.loads(json.dumps(live.to_json()))
    assert found["peak"] == {
        "bytes": PEAK_BYTES + UNSEEN, "kernel": 8, "operator": "Mul", "place": "loss", "phase": "backward"
    }
    assert found["num_kernels"] == 16 and found["by_kind"]["logits"] == 120
    assert sum(one["num_bytes"] for one in found["groups"]) == PEAK_BYTES


def test_a_layer_is_computed_again_where_a_gradient_follows():
    layer = "recompute_Default/decoder-Decoder/layers-CellList/0-Block/MatMul-op0"
    names = [layer, layer, "Default/loss-HeadLoss/Exp-op0", "Gradients/loss", layer, "Default/AllReduce-op1",
             "Gradients/layer", "Default/Send-op0", layer, "Default/Send-op1", layer, "Gradients/layer",
             "Default/optimizer-AdamW/Mul-op0"]
    assert live_module._phases(names) == [
        "forward", "forward", "forward", "backward", "recompute", "recompute", "backward", "backward", "forward",
        "forward", "recompute", "backward", "optimizer",
    ]
