"""A cluster's recipe on one device, and small."""

from __future__ import annotations

import pytest

from mindmodel.errors import LayoutError
from mindmodel.recipe.load import load_recipe
from mindmodel.recipe.rules import faults_of, with_degrees
from mindmodel.recipe.shrink import fewer_devices, shrink, single

CLUSTER = """\
model:
  family: llama
  hidden_size: 4096
  num_layers: 34
  num_heads: 32
  num_kv_heads: 8
  ffn_size: 14336
  vocab_size: 128256
  tied_embeddings: true
  rope_scaling: {type: llama3, factor: 8, original_max_position_embeddings: 8192}
data: {path: data/corpus, tokenizer: tokenizers/llama, seq_len: 8192}
parallel:
  {dp: 2, tp: 4, pp: 4, micro_batches: 8, stages: [8, 9, 9, 8], sequence_parallel: true, gathered_tokens: kept,
   shard_optimizer: states, recompute: full, recompute_layers: 4}
train: {steps: 10000, tokens_per_step: 4_194_304, compute_dtype: bfloat16, z_loss: 1e-4, init_from: runs/old}
optim: {warmup_steps: 500}
checkpoint: {every: 500, keep_every: 2000}
runtime: {device: ascend, output: /scratch/big}
"""


@pytest.fixture
def cluster(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(CLUSTER)
    return load_recipe(path)


def test_single_puts_every_degree_to_one_and_keeps_the_model(cluster):
    recipe, changes = single(cluster)
    parallel = recipe.parallel
    assert (parallel.degrees, parallel.stages) == ({"pp": 1, "dp": 1, "cp": 1, "tp": 1}, None)
    assert (parallel.sequence_parallel, parallel.shard_optimizer) == (False, "none")
    assert recipe.model == cluster.model
    assert recipe.train.compute_dtype == "bfloat16"
    assert "parallel.stages: [8, 9, 9, 8] -> not set" in changes
    assert "runtime.device: ascend -> auto" in changes


def test_single_keeps_what_the_user_typed(cluster):
    assert single(cluster, keep={"runtime.device"})[0].runtime.device == "ascend"


def test_shrink_keeps_the_structure(cluster):
    recipe, _ = shrink(cluster)
    old, new = cluster.model, recipe.model
    assert new.num_heads // new.num_kv_heads == old.num_heads // old.num_kv_heads
    assert new.hidden_size == new.num_heads * new.head_size
    assert new.ffn_size / new.hidden_size == old.ffn_size / old.hidden_size
    assert new.tied_embeddings and new.rope_scaling.type == "llama3"
    assert recipe.parallel.stages == (2, 3, 3, 2) and new.num_layers == 10
    assert recipe.parallel.micro_batches == 8
    assert recipe.parallel.tp == 4 and recipe.parallel.sequence_parallel
    assert recipe.train.z_loss == 1e-4


def test_shrink_makes_the_sizes_small(cluster):
    recipe, changes = shrink(cluster)
    assert recipe.model.hidden_size <= 256 and recipe.model.vocab_size == 512
    assert recipe.data.seq_len == 64 and recipe.sequences_per_step == 2 * 8 * 4
    assert (recipe.train.steps, recipe.optim.warmup_steps) == (20, 1)
    assert (recipe.checkpoint.every, recipe.checkpoint.keep_every) == (5, 20)
    assert recipe.parallel.recompute_layers == 1
    assert recipe.model.rope_scaling.original_max_position_embeddings == 64
    assert "model.num_layers: 34 -> 10" in changes


def test_shrink_needs_no_file_and_touches_no_other_run(cluster):
    recipe, _ = shrink(cluster)
    assert (recipe.data.source, recipe.data.path, recipe.data.tokenizer) == (("stdlib",), None, "train")
    assert recipe.train.init_from is None
    assert recipe.output == "runs/cluster_small"


def test_shrink_keeps_data_that_the_user_typed(cluster):
    recipe, _ = shrink(cluster, keep={"data.path"})
    assert (recipe.data.path, recipe.data.tokenizer) == ("data/corpus", "tokenizers/llama")
    assert recipe.model.vocab_size == cluster.model.vocab_size


def test_what_depends_on_a_kept_key_follows_it(cluster):
    recipe, _ = shrink(cluster, keep={"data.seq_len", "model.num_kv_heads", "checkpoint.every"})
    assert recipe.data.seq_len == 8192
    assert recipe.train.tokens_per_step == 8192 * recipe.sequences_per_step
    assert (recipe.model.num_kv_heads, recipe.model.num_heads) == (8, 32)
    assert recipe.checkpoint.keep_every == 4 * recipe.checkpoint.every == 2000
    assert shrink(cluster, keep={"data.tokenizer_vocab_size"})[0].model.vocab_size == 4096


@pytest.mark.parametrize("change", [single, shrink, lambda recipe: shrink(single(recipe)[0])])
def test_the_result_passes_all_rules(cluster, change):
    assert faults_of(change(cluster)[0]) == []


def test_shrinking_never_makes_anything_larger(load):
    old = load("model.num_layers=1", "model.head_size=8", "data.seq_len=16", "train.steps=3")
    new, _ = shrink(old)
    for key in ("num_layers", "head_size", "hidden_size", "ffn_size"):
        assert getattr(new.model, key) <= getattr(old.model, key)
    assert (new.data.seq_len, new.train.steps) == (16, 3)
    assert new.train.tokens_per_step <= old.train.tokens_per_step


def test_uneven_default_stages_stay_uneven(load):
    recipe = load("model.num_layers=9", "parallel.pp=4", "parallel.micro_batches=4")
    assert shrink(recipe)[0].model.num_layers == 2 * 4 + 1


def test_many_micro_batches_become_as_many_as_fill_and_drain_a_pipeline(cluster, load):
    many = cluster.with_keys({"parallel.micro_batches": 64})
    assert shrink(many)[0].parallel.micro_batches == 8
    recipe = load("parallel.micro_batches=8")
    assert (shrink(recipe)[0].parallel.micro_batches, shrink(recipe)[0].sequences_per_step) == (2, 2)


def test_single_undoes_interleaved_stages(load):
    recipe = load("parallel.pp=2", "parallel.micro_batches=2", "parallel.interleave=2")
    assert single(recipe)[0].parallel.interleave == 1


def test_interleaved_stages_keep_a_layer_in_every_chunk(load):
    recipe = load("model.num_layers=24", "parallel.pp=2", "parallel.micro_batches=2", "parallel.interleave=3")
    small, _ = shrink(recipe)
    assert (small.model.num_layers, small.parallel.interleave) == (6, 3)
    assert faults_of(small) == []


def test_cp_keeps_one_sequence_in_a_micro_batch(load):
    recipe = load("parallel.cp=2", "parallel.dp=2", "parallel.micro_batches=4", "data.seq_len=256",
                  "train.tokens_per_step=2048")
    small, _ = shrink(recipe)
    assert (small.sequences_per_step, small.parallel.micro_batches) == (2 * 2, 2)
    assert faults_of(small) == []


@pytest.mark.parametrize("tp, cp", [(2, 16), (6, 1), (8, 16)])
def test_tp_still_divides_heads_widths_vocabulary_and_the_tokens_it_splits(load, tp, cp):
    big = ["model.hidden_size=4096", "model.num_heads=48", "model.num_kv_heads=24", "model.head_size=64",
           "model.ffn_size=9216", "model.vocab_size=49152", "data.seq_len=3072", "train.tokens_per_step=6144"]
    recipe = load(*big, f"parallel.cp={cp}", "parallel.dp=2")
    recipe = recipe.with_keys({"parallel.tp": tp, "parallel.sequence_parallel": True})
    small = shrink(recipe)[0]
    assert small.model.num_kv_heads % tp == 0 and small.model.vocab_size % tp == 0
    assert small.model.num_heads == 2 * small.model.num_kv_heads
    assert small.data.seq_len // cp % tp == 0


def test_tying_norms_of_heads_and_the_compute_dtype_stay(load):
    recipe = load("model.family=qwen3", "model.tied_embeddings=true", "train.compute_dtype=bfloat16")
    small, _ = shrink(recipe)
    assert (small.model.qk_norm, small.model.tied_embeddings, small.train.compute_dtype) == (True, True, "bfloat16")


@pytest.mark.parametrize(
    "degrees, most, fewer",
    [
        ((4, 2, 1, 4), 16, (2, 2, 1, 4)),
        ((8, 16, 1, 8), 16, (2, 2, 1, 4)),
        ((1, 128, 1, 8), 16, (1, 4, 1, 4)),
        ((1, 6, 1, 2), 8, (1, 3, 1, 2)),
        ((2, 4, 2, 4), 16, (2, 2, 2, 2)),
    ],
)
def test_fewer_devices_halves_the_largest_degree_first_and_dp_before_its_equals(cluster, degrees, most, fewer):
    layout = dict(zip(("pp", "dp", "cp", "tp"), degrees))
    assert tuple(fewer_devices(with_degrees(cluster, **layout), most)[0].parallel.degrees.values()) == fewer


def test_fewer_devices_brings_along_what_depends_on_the_degrees(cluster):
    recipe, changes = fewer_devices(cluster, 8)
    assert recipe.parallel.degrees == {"pp": 2, "dp": 2, "cp": 1, "tp": 2}
    assert recipe.parallel.micro_batches == 4
    assert recipe.sequences_per_step // (2 * 4) == cluster.sequences_per_step // (2 * 8)
    assert recipe.parallel.stages == (8, 9) and recipe.model.num_layers == 17
    assert faults_of(recipe) == []
    assert "parallel.stages: [8, 9, 9, 8] -> [8, 9]" in changes


def test_ranks_that_share_a_kv_head_still_do_on_fewer_devices_and_in_small(load):
    recipe = with_degrees(load("model.num_heads=64", "model.num_kv_heads=8", "model.hidden_size=1024"), dp=2, tp=16)
    small = shrink(fewer_devices(recipe, 8)[0])[0]
    assert (small.parallel.tp, small.model.num_kv_heads, small.model.num_heads) == (4, 2, 16)
    one_head = recipe.with_keys({"model.num_kv_heads": 1})
    assert fewer_devices(one_head, 8)[0].model.num_kv_heads == 1


def test_a_layout_of_so_many_devices_stays_as_it_is(cluster):
    assert fewer_devices(cluster, 32) == (cluster, ())


def test_layers_that_stages_do_not_divide_stay_so_on_fewer_devices(load):
    recipe = load("model.num_layers=10", "parallel.dp=1", "parallel.pp=4", "parallel.micro_batches=4")
    assert fewer_devices(recipe, 2)[0].model.num_layers == 9
    even = load("model.num_layers=8", "parallel.dp=1", "parallel.pp=4", "parallel.micro_batches=4")
    assert fewer_devices(even, 2)[0].model.num_layers == 8


def test_too_few_devices_for_all_axes_are_refused(cluster):
    with pytest.raises(LayoutError, match=r"pp=2 \* dp=2 \* cp=1 \* tp=2 = 8 devices are the fewest that keep"):
        fewer_devices(cluster, 4)
