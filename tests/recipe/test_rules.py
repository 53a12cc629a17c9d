"""Rules across sections: each says where, what is wrong and what would work."""

from __future__ import annotations

import re

import pytest

from mindmodel.errors import LayoutError, RecipeError
from mindmodel.recipe.rules import RULES, resolve_degrees

LLAMA3 = "model.rope_scaling={type: llama3, factor: 8, low_freq_factor: 4, high_freq_factor: 4}"

CASES = {
    "data_has_one_origin": (
        ["data.path=shards"],
        "command line, data.path: 'data.source' is given too. Use one",
    ),
    "family_is_known": (
        ["model.family=lama"],
        "command line, model.family: 'lama' is unknown. Use llama",
    ),
    "family_has_the_features": (
        ["model.qk_norm=true"],
        "command line, model.qk_norm: 'family=llama' has qk_norm false. Use false, or leave the key out.",
    ),
    "rope_bands_are_ordered": (
        [LLAMA3],
        "command line, model.rope_scaling.high_freq_factor: must be above 'low_freq_factor=4'. Use 16.",
    ),
    "heads_fit": (
        ["model.num_kv_heads=3"],
        "command line, model.num_kv_heads: 'num_kv_heads=3' does not divide 'num_heads=4'. Use 1, 2 or 4.",
    ),
    "vocabulary_holds_the_tokenizer": (
        ["model.vocab_size=500"],
        "command line, model.vocab_size: 'vocab_size=500' is smaller than 'data.tokenizer_vocab_size=512'. Use 512 or",
    ),
    "batch_is_whole_sequences": (
        ["train.tokens_per_step=100"],
        "command line, train.tokens_per_step: 'tokens_per_step=100' is not a multiple of 'seq_len=32'. Use 96 or 128.",
    ),
    "every_rank_has_a_sequence": (
        ["parallel.micro_batches=3", "parallel.dp=4"],
        "small.yaml, train.tokens_per_step: 'tokens_per_step=256' is 8 sequences of 32, fewer than 'dp=4' times "
        "'micro_batches=3'. Use 384 or more.",
    ),
    "one_degree_is_auto": (
        ["parallel.tp=auto"],
        "command line, parallel.tp: 'dp' and 'tp' are auto (dp is by default). Use a number for all but one.",
    ),
    "tp_divides_the_model": (
        ["parallel.tp=3"],
        "command line, parallel.tp: 'tp=3' does not divide 'num_heads=4', 'num_kv_heads=2' or 'ffn_blocks=16'. "
        "Use 1, 2 or 4.",
    ),
    "sequence_parallel_has_tp": (
        ["parallel.sequence_parallel=true"],
        "command line, parallel.sequence_parallel: splits over the tp ranks, and 'tp=1'. Use false, or tp of 2 or",
    ),
    "kept_tokens_are_gathered": (
        ["parallel.gathered_tokens=kept", "parallel.tp=2"],
        "command line, parallel.gathered_tokens: 'kept' is about tokens that sequence_parallel gathers, and it is "
        "false. Use again, or sequence_parallel=true.",
    ),
    "sequence_parallel_divides_the_tokens": (
        ["parallel.sequence_parallel=true", "parallel.tp=2", "parallel.dp=8", "data.seq_len=33",
         "train.tokens_per_step=264"],
        "command line, parallel.sequence_parallel: 'tp=2' does not divide the 33 tokens of a rank and micro-batch. "
        "Use false, or a data.seq_len that 2 divides.",
    ),
    "cp_divides_the_sequence": (
        ["parallel.cp=3"],
        "command line, parallel.cp: 'cp=3' does not divide 'seq_len=32'. Use 1, 2 or 4.",
    ),
    "cp_cuts_one_sequence_at_a_time": (
        ["parallel.cp=2", "parallel.dp=2"],
        "small.yaml, parallel.micro_batches: 'cp=2' cuts one sequence at a time, and a rank's micro-batch has 4. "
        "Use micro_batches=4, or train.tokens_per_step=64.",
    ),
    "stages_hold_all_layers": (
        ["parallel.stages=[2,3]", "parallel.pp=2", "parallel.micro_batches=2"],
        "command line, parallel.stages: adds up to 5 layers, and 'num_layers=4'. Use numbers that add up to 4",
    ),
    "pipeline_is_filled": (
        ["parallel.pp=4", "parallel.micro_batches=2"],
        "command line, parallel.micro_batches: 'micro_batches=2' leaves stages of 'pp=4' idle all the time. Use 4",
    ),
    "interleaved_chunks_are_equal": (
        ["parallel.interleave=3", "parallel.pp=2", "parallel.micro_batches=2"],
        "command line, parallel.interleave: 'pp=2' times 'interleave=3' does not divide 'num_layers=4'. Use 1 or 2.",
    ),
    "sharded_optimizer_has_ranks": (
        ["parallel.shard_optimizer=states", "parallel.dp=1", "parallel.tp=2"],
        "command line, parallel.shard_optimizer: 'states' would change nothing: it splits over dp * cp ranks, and that "
        "is one. Use none, or dp of 2 or more.",
    ),
    "tied_stages_keep_parameters_whole": (
        ["parallel.shard_optimizer=parameters", "parallel.dp=2", "parallel.pp=2", "parallel.micro_batches=2",
         "model.tied_embeddings=true"],
        "command line, parallel.shard_optimizer: 'parameters' does not compile with 'pp=2' and tied_embeddings. Use "
        "states or gradients.",
    ),
    "devices_make_whole_nodes": (
        ["parallel.dp=1", "parallel.pp=3", "parallel.micro_batches=4"],
        "command line, parallel.dp: 'pp * dp * cp * tp' is 3 devices, and MindSpore takes 1, 2, 4 or a multiple of 8 "
        "Ascend devices. Change a degree.",
    ),
    "reduce_dtype_has_slices_to_sum": (
        ["parallel.reduce_dtype=compute"],
        "command line, parallel.reduce_dtype: 'compute' goes with sharded states, and 'shard_optimizer=none'. Use "
        "states there, or float32 here.",
    ),
    "recompute_layers_has_recompute": (
        ["parallel.recompute_layers=1"],
        "command line, parallel.recompute_layers: limits recompute, and 'recompute=none'. Use recompute selective",
    ),
    "warmup_ends_before_the_run": (
        ["optim.warmup_steps=100"],
        "command line, optim.warmup_steps: 'warmup_steps=100' is not below 'train.steps=100'. "
        "Use optim.warmup_steps=10, or another number below 100.",
    ),
    "stop_is_within_the_run": (
        ["train.stop_at=101"],
        "command line, train.stop_at: 'stop_at=101' is beyond 'steps=100'. Use 100 or less.",
    ),
    "kept_checkpoints_are_written": (
        ["checkpoint.every=10", "checkpoint.keep_every=15"],
        "command line, checkpoint.keep_every: 'keep_every=15' meets no checkpoint of 'every=10'. Use a multiple of 10.",
    ),
    "best_checkpoint_is_evaluated": (
        ["checkpoint.keep_best=true", "checkpoint.every=10"],
        "command line, checkpoint.keep_best: 'keep_best' compares held-out losses of steps that are saved, and "
        "'train.eval_every=0'. Give checkpoint.every, and train.eval_every a multiple of it.",
    ),
}

MORE_CASES = [
    (["data.source=null"], "data.source: no data. Use data.source=stdlib, or a text file"),
    (["data.source=[]"], "data.source: is empty. Use stdlib, a file, a folder, a glob"),
    (["model.head_size=15"], "model.head_size: '15' is odd, and rotary embedding turns pairs. Use 14 or 16."),
    (["model.num_heads=6"], "model.head_size: 'num_heads=6' does not divide 'hidden_size=64'. Use another of the two"),
    (["model.vocab_size=513", "parallel.tp=2"], "'tp=2' does not divide 'vocab_size=513'. Use 1."),
    (["parallel.pp=8", "parallel.micro_batches=8"], "'pp=8' leaves stages without a layer: 'num_layers=4'. Use 4 or"),
    (["parallel.stages=[2,2]"], "parallel.stages: names 2 stages, and 'pp=1'. Use 1 numbers, or pp=2."),
    (["parallel.interleave=2"], "parallel.interleave: 'interleave=2' cuts pipeline stages, and 'pp=1'. Use 1, or pp"),
    (
        ["parallel.interleave=2", "parallel.pp=3", "parallel.micro_batches=4"],
        "parallel.interleave: 'pp=3' times 'interleave=2' does not divide 'num_layers=4'. Use 1, or a pp that divides",
    ),
    (
        ["parallel.interleave=2", "parallel.pp=2", "parallel.micro_batches=2", "parallel.stages=[1,3]"],
        "parallel.stages: 'interleave=2' has chunks of equal size. Leave stages out, or use interleave=1.",
    ),
    (["checkpoint.keep_every=15"], "'keep_every=15' meets no checkpoint of 'every=0'. Use 0, or give checkpoint"),
]


def test_every_rule_has_a_case():
    assert set(CASES) == {rule.__name__ for rule in RULES}


IDS = [*CASES, *map(str, range(len(MORE_CASES)))]


@pytest.mark.parametrize("overrides, message", [*CASES.values(), *MORE_CASES], ids=IDS)
def test_a_broken_rule_says_where_what_and_what_would_work(load, overrides, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        load(*overrides)


def test_all_broken_rules_come_at_once(load):
    with pytest.raises(RecipeError) as error:
        load("parallel.tp=3", "parallel.cp=3", "train.stop_at=101")
    assert len(str(error.value).splitlines()) == 3


def test_rules_pass_over_what_an_auto_degree_decides(load):
    keys = ["cp=2", "tp=2", "sequence_parallel=true", "shard_optimizer=states"]
    recipe = load(*(f"parallel.{key}" for key in keys))
    assert resolve_degrees(recipe, 32).parallel.dp == 8
    with pytest.raises(LayoutError, match="'cp=2' cuts one sequence at a time, and a rank's micro-batch has 2"):
        resolve_degrees(recipe, 16)


STATES = "parallel.shard_optimizer=states"
COMPUTE = "parallel.reduce_dtype=compute"


def test_gradients_are_summed_in_the_compute_dtype_where_each_rank_gets_its_slice(load):
    assert load(STATES, COMPUTE).parallel.reduce_dtype == "compute"
    with pytest.raises(RecipeError, match="with 'pp=1' and 'micro_batches=2' they are added up first, in float32"):
        load(STATES, COMPUTE, "parallel.micro_batches=2")
    with pytest.raises(RecipeError, match="which do not divide 'hidden_size'.* Use other degrees, or float32 here"):
        load(STATES, COMPUTE, "parallel.dp=7", "train.tokens_per_step=7168")


def test_qwen3_has_qk_norm_by_itself(load):
    assert load("model.family=qwen3").model.qk_norm is True


def test_the_auto_degree_takes_the_devices_that_are_left(load):
    recipe = load("parallel.tp=2", "parallel.pp=2", "parallel.micro_batches=2")
    assert resolve_degrees(recipe, 8).parallel.dp == 2
    assert resolve_degrees(load(), 1).parallel.dp == 1


def test_any_degree_may_be_the_auto_one(load):
    recipe = load("parallel.dp=2", "parallel.tp=auto")
    assert resolve_degrees(recipe, 4).parallel.tp == 2


def test_degrees_that_cannot_make_the_devices_are_refused_with_layouts_that_can(load):
    recipe = load("parallel.dp=2", "parallel.tp=2")
    with pytest.raises(LayoutError, match=r"pp=1 \* dp=2 \* cp=1 \* tp=2 cannot be 8 devices") as error:
        resolve_degrees(recipe, 8)
    assert str(error.value).startswith("recipe 'small', parallel: ")
    assert "Use pp=1 dp=2 cp=1 tp=4, pp=1 dp=4 cp=1 tp=2 or pp=1 dp=8 cp=1 tp=1." in str(error.value)


def test_an_auto_degree_that_breaks_a_rule_is_refused_with_layouts_that_work(load):
    with pytest.raises(LayoutError, match="parallel.tp: 'tp=8' does not divide 'num_heads=4'. Use 1, 2 or 4") as error:
        resolve_degrees(load("parallel.dp=1", "parallel.tp=auto"), 8)
    assert "Use pp=1 dp=2 cp=1 tp=4, pp=1 dp=4 cp=1 tp=2 or pp=1 dp=8 cp=1 tp=1." in str(error.value)


def test_tp_may_be_a_multiple_of_the_kv_heads_that_divides_the_query_heads(load):
    assert load("parallel.tp=4", "model.num_kv_heads=1").parallel.tp == 4
    heads = ["model.hidden_size=96", "model.num_heads=12", "model.num_kv_heads=6", "model.ffn_size=240"]
    with pytest.raises(RecipeError, match="'tp=4' does not divide 'num_kv_heads=6'. Use 1 or 2"):
        load(*heads, "parallel.tp=4")


def test_a_number_of_devices_that_no_layout_fits_is_said(load):
    with pytest.raises(LayoutError, match="No layout of that many devices fits this model and batch"):
        resolve_degrees(load(), 11)
