"""Runs become folders that transformers opens without a complaint, and folders become runs, bit for bit."""

import errno
import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from mindmodel.checkpoint.run_folder import resolve_weights
from mindmodel.convert.hf import from_hf, to_hf
from mindmodel.errors import CheckpointError, ConversionError
from mindmodel.recipe.load import load_run_recipe


def tensors_of(folder):
    """All tensors of a Hugging Face folder, read by the reference library."""
    return {n: t for path in folder.glob("*.safetensors") for n, t in safetensors.torch.load_file(path).items()}


def assert_same_tensors(one, other):
    one, other = tensors_of(one), tensors_of(other)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]), name


def open_model(folder, **options):
    """The model as transformers reads it; nothing may be missing, unexpected or misshapen."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    return model


def logits_of(folder):
    ids = torch.arange(24).reshape(2, 12) * 7 % 250
    with torch.no_grad():
        return open_model(folder, dtype="auto")(ids).logits


def edit_json(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


# Imported and exported again


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_there_and_back_is_bitwise_the_same_model(save_hf, tmp_path, family, dtype, tied, shard):
    folder = save_hf(family, dtype, tie_word_embeddings=tied, max_shard_size=shard)
    from_hf(folder, tmp_path / "run")
    to_hf(tmp_path / "run", tmp_path / "out", max_shard_bytes=5 * 10**9 if shard == "5GB" else 20_000)
    assert_same_tensors(folder, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file() == (shard == "5GB")
    assert torch.equal(logits_of(folder), logits_of(tmp_path / "out"))
    assert AutoConfig.from_pretrained(folder).to_dict() == {
        **AutoConfig.from_pretrained(tmp_path / "out").to_dict(),
        "_name_or_path": str(folder),
    }


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
def test_all_groupings_of_heads_come_through(save_hf, tmp_path, heads):
    folder = save_hf(num_attention_heads=heads[0], num_key_value_heads=heads[1])
    from_hf(folder, tmp_path / "run")
    to_hf(tmp_path / "run", tmp_path / "out")
    assert_same_tensors(folder, tmp_path / "out")


def test_rope_scaling_and_extra_entries_come_through(save_hf, tmp_path):
    scaling = {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    folder = save_hf(rope_scaling={**scaling, "original_max_position_embeddings": 32}, rope_theta=3e4, pad_token_id=9)
    edit_json(folder / "config.json", mine="kept")
    from_hf(folder, tmp_path / "run")
    to_hf(tmp_path / "run", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["mine"], config["max_position_embeddings"], config["pad_token_id"]) == ("kept", 77, 9)
    assert (config["bos_token_id"], config["eos_token_id"]) == (3, 4)
    assert torch.equal(logits_of(folder), logits_of(tmp_path / "out"))


def test_an_imported_vocabulary_is_never_cut(save_hf, tmp_path):
    folder = save_hf()
    from_hf(folder, tmp_path / "run")
    to_hf(tmp_path / "run", tmp_path / "out")
    vocab_size = AutoConfig.from_pretrained(folder).vocab_size
    assert len(AutoTokenizer.from_pretrained(folder)) < vocab_size
    assert tensors_of(tmp_path / "out")["model.embed_tokens.weight"].shape[0] == vocab_size
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == vocab_size


def test_tokenizer_and_configurations_are_copied_byte_for_byte(save_hf, tmp_path):
    folder = save_hf()
    from_hf(folder, tmp_path / "run")
    to_hf(tmp_path / "run", tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        content = (folder / name).read_bytes()
        assert (tmp_path / "run" / "tokenizer" / name).read_bytes() == content == (tmp_path / "out" / name).read_bytes()
    for name in ("config.json", "generation_config.json"):
        assert (tmp_path / "run" / "huggingface" / name).read_bytes() == (folder / name).read_bytes()


def test_an_imported_run_is_a_run_of_step_0_with_the_weights_as_they_were(save_hf, tmp_path):
    written = from_hf(save_hf("qwen3", torch.bfloat16), tmp_path / "my run.v2")
    assert written.dtype == "bfloat16" and "checkpoints/step_0" in written.files
    run, checkpoint = resolve_weights(tmp_path / "my run.v2")
    recipe = load_run_recipe(run.recipe_file)
    assert (recipe.name, recipe.model.family, recipe.data.seq_len) == ("my_run_v2", "qwen3", 77)
    assert recipe.data.tokenizer == str(run.tokenizer) and recipe.runtime.output == str(run.path)
    assert recipe.data.source is None and recipe.data.path is None
    assert checkpoint.index.step == checkpoint.index.samples == 0 and len(checkpoint.optimizer()) == 0
    assert checkpoint.weights()["layers.0.attention.qkv.weight"].dtype == ml_dtypes.bfloat16
    assert checkpoint.weights()["layers.0.attention.qkv.weight"].shape == ((4 + 2 * 2) * 8, 16)


def test_a_long_context_is_imported_with_a_moderate_sequence_length(save_hf, tmp_path):
    from_hf(save_hf(max_position_embeddings=131072), tmp_path / "run")
    assert load_run_recipe(tmp_path / "run" / "recipe.yaml").data.seq_len == 1024


def test_a_model_without_tokenizer_and_generation_config_is_imported(save_hf, tmp_path):
    folder = save_hf(tokenizer=False)
    (folder / "generation_config.json").unlink()
    from_hf(folder, tmp_path / "run")
    written = to_hf(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "run" / "tokenizer").exists()
    assert written.files == ("model.safetensors", "config.json")


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_both_names_of_the_dtype_entry_are_read(save_hf, tmp_path, key):
    folder = save_hf(dtype=torch.bfloat16)
    config = json.loads((folder / "config.json").read_text())
    dtype = config.pop("dtype")
    (folder / "config.json").write_text(json.dumps({**config, key: dtype}))
    from_hf(folder, tmp_path / "run")
    to_hf(tmp_path / "run", tmp_path / "out")
    assert_same_tensors(folder, tmp_path / "out")


# Trained here and exported


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_trained_run_is_opened_by_transformers(make_run, tmp_path, family, tied):
    run = make_run(family=family, tied_embeddings=tied)
    to_hf(run.path, tmp_path / "out")
    model = open_model(tmp_path / "out")
    weights = resolve_weights(run.path)[1].weights()
    np.testing.assert_array_equal(model.model.embed_tokens.weight.detach().numpy(), weights["embedding.weight"])
    head = weights["embedding.weight" if tied else "head.weight"]
    np.testing.assert_array_equal(model.lm_head.weight.detach().numpy(), head)
    assert ("lm_head.weight" in tensors_of(tmp_path / "out")) != tied
    assert model.config.max_position_embeddings == 32


def test_tokens_and_generation_settings_come_from_the_tokenizer(make_run, tmp_path):
    to_hf(make_run().path, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.decode(tokenizer("one two")["input_ids"]) == "one two"
    for settings in (AutoConfig.from_pretrained(tmp_path / "out"), GenerationConfig.from_pretrained(tmp_path / "out")):
        assert settings.bos_token_id == settings.eos_token_id == tokenizer.eos_token_id == 0


def test_a_tokenizer_without_begin_token_leaves_none_to_be_made_up(make_run, tmp_path):
    run = make_run()
    edit_json(run.tokenizer / "tokenizer_config.json", bos_token=None)
    to_hf(run.path, tmp_path / "out")
    assert AutoConfig.from_pretrained(tmp_path / "out").bos_token_id is None
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"eos_token_id": 0}


@pytest.mark.parametrize("tied", [True, False])
def test_padding_of_the_vocabulary_is_cut_and_its_size_restored(make_run, vocab_size, tmp_path, tied):
    run = make_run(vocab_size=vocab_size + 20, tied_embeddings=tied)
    to_hf(run.path, tmp_path / "out")
    model, padded = open_model(tmp_path / "out"), resolve_weights(run.path)[1].weights()["embedding.weight"]
    assert model.config.vocab_size == model.lm_head.weight.shape[0] == vocab_size
    assert padded.shape[0] == vocab_size + 20
    np.testing.assert_array_equal(model.model.embed_tokens.weight.detach().numpy(), padded[:vocab_size])


def test_a_tokenizer_larger_than_the_model_is_refused(make_run, tmp_path):
    with pytest.raises(ConversionError, match=r"tokenizer: has \d+ tokens, more than the model's 100"):
        to_hf(make_run(vocab_size=100).path, tmp_path / "out")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_rounded_as_torch_rounds_them(make_run, tmp_path, dtype):
    run = make_run()
    to_hf(run.path, tmp_path / "plain")
    written = to_hf(run.path, tmp_path / "out", dtype)
    assert written.dtype == dtype
    rounded = tensors_of(tmp_path / "out")
    for name, tensor in tensors_of(tmp_path / "plain").items():
        assert torch.equal(rounded[name], tensor.to(getattr(torch, dtype))), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_stands_under_both_names(make_run, tmp_path, dtype):
    to_hf(make_run().path, tmp_path / "out", dtype)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == dtype
    assert open_model(tmp_path / "out", dtype="auto").dtype == getattr(torch, dtype)


def test_one_checkpoint_can_be_exported(make_run, tmp_path):
    run = make_run()
    to_hf(run.checkpoints / "step_10", tmp_path / "out")
    to_hf(run.path, tmp_path / "out2")
    assert_same_tensors(tmp_path / "out", tmp_path / "out2")


# What is refused, and what it leaves behind


def test_numbers_beyond_the_range_of_a_dtype_are_refused(make_run, tmp_path):
    def change(weights):
        weights["norm.weight"][:2] = 1e6
        return weights

    with pytest.raises(ConversionError, match="model.norm.weight: 2 weights are beyond the range of float16"):
        to_hf(make_run(change=change).path, tmp_path / "out", "float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_checkpoint_of_another_model_is_refused(make_run, tmp_path):
    def change(weights):
        weights["layers.0.mlp.down.weight"] = weights["layers.0.mlp.down.weight"].T
        return {name: array for name, array in weights.items() if name != "norm.weight"}

    with pytest.raises(ConversionError) as caught:
        to_hf(make_run(change=change).path, tmp_path / "out")
    assert str(caught.value).splitlines()[1:] == [
        "  missing: norm.weight [16]",
        "  shape: layers.0.mlp.down.weight is [48, 16], the model needs [16, 48]",
    ]


def test_a_norm_that_the_family_has_not_is_refused(make_run, tmp_path):
    with pytest.raises(ConversionError, match="model.qk_norm: True is not what LlamaForCausalLM computes"):
        to_hf(make_run(qk_norm=True).path, tmp_path / "out")


def test_a_run_without_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="there is no such folder"):
        to_hf(tmp_path / "none", tmp_path / "out")


def test_a_target_that_holds_something_is_refused(make_run, save_hf, tmp_path):
    run, folder = make_run(), save_hf()
    (tmp_path / "file").write_text("")
    for taken in (run.path, tmp_path / "file"):
        with pytest.raises(ConversionError, match="exists and is not an empty folder. Choose another name"):
            to_hf(run.path, taken)
        with pytest.raises(ConversionError, match="exists and is not an empty folder. Choose another name"):
            from_hf(folder, taken)


def test_an_empty_target_is_filled(make_run, tmp_path):
    (tmp_path / "out").mkdir()
    to_hf(make_run().path, tmp_path / "out")
    open_model(tmp_path / "out")


def test_a_full_disk_leaves_nothing_behind(make_run, save_hf, tmp_path, monkeypatch):
    run, folder = make_run(), save_hf()

    def fail(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mindmodel.convert.folder.write_text_safely", fail)
    monkeypatch.setattr("mindmodel.convert.imported.write_text_safely", fail)
    with pytest.raises(OSError, match="No space left on device: '.*/out'"):
        to_hf(run.path, tmp_path / "out")
    with pytest.raises(OSError, match="No space left on device: '.*/imported'"):
        from_hf(folder, tmp_path / "imported")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf_llama", "run"]


def test_tensors_that_are_not_the_configured_model_are_refused(save_hf, tmp_path):
    folder = save_hf()
    edit_json(folder / "config.json", num_key_value_heads=4)
    with pytest.raises(ConversionError, match=r"k_proj.weight is \[16, 16\], the model needs \[32, 16\]"):
        from_hf(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_sizes_that_cannot_be_are_refused(save_hf, tmp_path):
    folder = save_hf()
    edit_json(folder / "config.json", num_key_value_heads=3)
    with pytest.raises(ConversionError, match="config.json, model.num_kv_heads: .*does not divide"):
        from_hf(folder, tmp_path / "run")
    edit_json(folder / "config.json", num_key_value_heads=2, max_position_embeddings="77")
    with pytest.raises(ConversionError, match="max_position_embeddings: '77' is not a number of tokens above 1"):
        from_hf(folder, tmp_path / "run")
