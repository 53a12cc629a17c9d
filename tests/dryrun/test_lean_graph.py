"""What the graph that a chip would run does not waste: each line was once measured as memory, bytes or kernels."""

from __future__ import annotations

import pytest

from dry_runs import recipe_for, reports_of

SIZES = {"hidden_size": 512, "num_layers": 2, "num_heads": 8, "ffn_size": 1024, "vocab_size": 8192}
TOKENS, TP = 1024, 4
SLICES = 8
LOGITS_BYTES = 2 * TOKENS * SIZES["vocab_size"] // TP
"""In bfloat16, of a rank."""

APART = "sharded parameters"
SUMMED = "selective, summed in bfloat16"
LAYOUTS = {
    "plain": {},
    SUMMED: {"recompute": "selective", "reduce_dtype": "compute"},
    "micro-batches": {"recompute": "selective", "micro_batches": 2},
    "tokens kept": {"gathered_tokens": "kept"},
    APART: {"shard_optimizer": "parameters", "recompute": "selective"},
}
LAYER_KERNELS = {"plain": 30, SUMMED: 42, "tokens kept": 30}
"""In a layer: cast and transposed products of four weights, norms and what is added, rotation, attention, SwiGLU."""


@pytest.fixture(scope="module")
def reports(standin):
    """What the compiler says of each layout's first rank."""
    keys = {"dp": 2, "tp": TP, "sequence_parallel": True, "shard_optimizer": "states"}
    train = {"compute_dtype": "bfloat16"}
    recipes = {
        name: recipe_for(SIZES, seq_len=TOKENS, sequences=2 * more.get("micro_batches", 1), train=train, **keys | more)
        for name, more in LAYOUTS.items()
    }
    return reports_of({name: (recipe, 0) for name, recipe in recipes.items()})


@pytest.fixture(params=LAYOUTS)
def report(reports, request):
    """One of them after the other."""
    return reports[request.param]


def bytes_by_dtype(report, kind, axis):
    return {c.dtype: c.bytes for c in report.collectives if c.kind == kind and c.axes == (axis,)}


def test_weights_are_gathered_in_the_dtype_of_the_products(report):
    assert bytes_by_dtype(report, "AllGather", "dp").keys() - {"int32"} == {"bfloat16"}


def test_gradients_are_summed_in_float32_unless_the_recipe_says_otherwise(reports):
    plain, summed = (bytes_by_dtype(reports[name], "ReduceScatter", "dp") for name in ("plain", SUMMED))
    assert plain.keys() == {"float32"} and summed.keys() == {"bfloat16"}
    assert summed["bfloat16"] * 2 == plain["float32"]


def test_activations_go_over_tp_in_the_compute_dtype(report):
    """In float32 only one number a token, for the loss."""
    for kind in ("AllGather", "ReduceScatter", "AllReduce"):
        assert bytes_by_dtype(report, kind, "tp").get("float32", 0) < TOKENS * SIZES["hidden_size"]


def test_kept_tokens_are_gathered_once(reports):
    """Each output of a norm, and the gradient of each product that is summed over tp; of the head the former."""
    again, kept = (
        sum(c.count for c in reports[name].collectives if (c.kind, c.axes) == ("AllGather", ("tp",)))
        for name in ("plain", "tokens kept")
    )
    layers = SIZES["num_layers"]
    assert (again, kept) == (6 * layers + 3, 4 * layers + 2)


def test_logits_are_there_once_in_the_compute_dtype(report):
    logits = [group for group in report.live.groups if group.kind == "logits"]
    assert [group for group in logits if group.dtype != "bf16" and group.shape[0] > TOKENS // SLICES] == []
    assert report.by_kind["logits"] <= 2 * LOGITS_BYTES + 4 * 2 * LOGITS_BYTES // SLICES


def test_logits_that_are_computed_again_are_not_kept(reports):
    held = [group for group in reports[SUMMED].live.groups if group.shape == (TOKENS, SIZES["vocab_size"] // TP)]
    assert sum(group.count for group in held) <= 1


def test_one_mask_and_one_pair_of_rotary_tables_are_in_memory(reports):
    mask, table = 2048 * 2048, 2 * TOKENS * SIZES["hidden_size"] // SIZES["num_heads"]
    for name in LAYER_KERNELS:
        constants = reports[name].live.by_kind["constants"]
        assert mask + 2 * table <= constants < mask + 2 * table + (1 << 17)


def test_micro_batches_have_no_copies_of_constants_for_every_pass(reports):
    groups = [group for group in reports["micro-batches"].live.groups if group.kind == "constants"]
    masks = sum(group.count for group in groups if group.shape == (2048, 2048))
    tables = sum(group.count for group in groups if group.shape[:2] == (1, TOKENS))
    assert (masks, tables) == (1, SIZES["num_layers"] + 1)


@pytest.mark.parametrize("layout", LAYER_KERNELS)
def test_a_layer_has_no_more_kernels(reports, layout):
    assert reports[layout].layer_kernels / SIZES["num_layers"] <= LAYER_KERNELS[layout]


def test_a_tensor_takes_four_kernels_from_its_gradient_to_its_update(reports):
    kernels, num_tensors = reports["plain"].kernels, 2 + 1 + 6 * SIZES["num_layers"]
    for name in ("Dot", "NanToNum", "AdamApplyOneWithDecayAssign"):
        assert kernels[name] == num_tensors
    assert not kernels.keys() & {"Transpose", "BroadcastTo", "ZerosLike", "Square"}


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != APART])
def test_norms_are_fused_with_the_addition_before_them(reports, layout):
    assert reports[layout].kernels["AddRmsNorm"] >= 2 * SIZES["num_layers"] - 1


def test_norms_that_would_wait_for_a_gradient_are_not(reports):
    """Fused they do not compile: the addition would wait too, and the gradient for it."""
    assert reports[APART].kernels["AddRmsNorm"] <= 1
