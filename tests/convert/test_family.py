"""A family maps a configuration to our model and back, and refuses what the decoder cannot compute."""

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig, Qwen3Config

from mindmodel.errors import ConversionError, RecipeError
from mindmodel.models import family as family_module
from mindmodel.models.family import family_names, family_of, find_family, parameter_shapes
from mindmodel.recipe.schema import ModelSection, RopeScaling

WHERE = Path("hf/config.json")
CONFIGS = {"llama": LlamaConfig, "qwen3": Qwen3Config}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def make_config(name="llama", **changes):
    sizes = {
        "architectures": [find_family(name).architecture],
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "intermediate_size": 96,
        "vocab_size": 100,
    }
    return CONFIGS[name](**{**sizes, **changes}).to_dict()


def read(config, name="llama"):
    return find_family(name).read_config(config, WHERE)


def test_every_file_with_a_family_is_a_family():
    assert family_names() == ("llama", "qwen3")
    assert [find_family(name).name for name in family_names()] == list(family_names())


def test_a_new_file_is_all_that_a_new_family_needs(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("FAMILY = None\n")
    (tmp_path / "helper.py").write_text("from mindmodel.models.llama import FAMILY\n# FAMILY = 1\n")
    monkeypatch.setattr(family_module, "__file__", str(tmp_path / "family.py"))
    assert family_names() == ("mine",)


def test_an_unknown_family_names_the_nearest():
    with pytest.raises(RecipeError, match="model.family: 'lama' is unknown. Did you mean 'llama'\\? Use one"):
        find_family("lama")
    with pytest.raises(RecipeError, match="model.family: '../x' is unknown. Use one of"):
        find_family("../x")


def test_finding_a_family_does_not_import_mindspore():
    code = "import sys, mindmodel.models.family as f; f.find_family('qwen3'); print('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("name", CONFIGS)
def test_the_configuration_of_transformers_becomes_our_model(name):
    config = make_config(name, rms_norm_eps=1e-5, rope_theta=5e5, tie_word_embeddings=True, initializer_range=0.01)
    assert read(config, name) == ModelSection(
        family=name,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_size=24,
        ffn_size=96,
        vocab_size=100,
        rope_theta=5e5,
        norm_eps=1e-5,
        tied_embeddings=True,
        qk_norm=name == "qwen3",
        init_std=0.01,
    )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("scaling", [None, LLAMA3, {"rope_type": "linear", "factor": 2.0}])
@pytest.mark.parametrize("tied", [True, False])
def test_there_and_back_is_the_same_model_also_for_transformers(name, scaling, tied):
    model = read(make_config(name, rope_scaling=scaling, tie_word_embeddings=tied), name)
    written = find_family(name).write_config(model)
    assert read(written, name) == model
    read_by_transformers = CONFIGS[name](**written)
    assert read(read_by_transformers.to_dict(), name) == model
    assert read_by_transformers.rope_scaling == scaling


def test_entries_that_are_left_out_have_the_defaults_of_transformers():
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    for name, config_class in CONFIGS.items():
        written = {**sizes, "vocab_size": 10, "architectures": [find_family(name).architecture]}
        filled = {**config_class(**written).to_dict(), "architectures": written["architectures"]}
        assert read(written, name) == read(filled, name)
    for name, sizes in {"qwen3": (128, 32), "llama": (16, 4)}.items():
        model = read({**written, "architectures": None}, name)
        assert (model.head_size, model.num_kv_heads) == sizes


def test_rope_parameters_of_newer_files_are_understood():
    config = make_config()
    config.pop("rope_theta"), config.pop("rope_scaling")
    plain = read({**config, "rope_parameters": {"rope_type": "default", "rope_theta": 7e4}})
    assert plain.rope_theta == 7e4 and plain.rope_scaling is None
    scaled = read({**config, "rope_parameters": {**LLAMA3, "rope_theta": 7e4}})
    assert scaled.rope_theta == 7e4 and scaled.rope_scaling == RopeScaling(type="llama3", factor=8.0)


def test_the_older_name_of_the_scaling_type_is_understood():
    assert read(make_config() | {"rope_scaling": {"type": "linear", "factor": 3}}).rope_scaling.factor == 3.0


@pytest.mark.parametrize(
    "name, entry, value",
    [
        ("llama", "attention_bias", True),
        ("llama", "mlp_bias", True),
        ("llama", "hidden_act", "gelu"),
        ("llama", "partial_rotary_factor", 0.5),
        ("llama", "quantization_config", {"bits": 4}),
        ("llama", "architectures", ["LlamaForSequenceClassification"]),
        ("qwen3", "attention_bias", True),
        ("qwen3", "use_sliding_window", True),
        ("qwen3", "layer_types", ["full_attention", "sliding_attention"]),
    ],
)
def test_what_the_decoder_cannot_compute_is_refused_by_name(name, entry, value):
    with pytest.raises(ConversionError, match=f"hf/config.json, {entry}: .* is not supported for {name}. Only"):
        read(make_config(name) | {entry: value}, name)


@pytest.mark.parametrize(
    "scaling, fault",
    [
        ({"rope_type": "yarn", "factor": 2.0}, "rope_scaling: .*yarn.* is not supported. Known types are default, "),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "rope_scaling: .* is not supported. Known types"),
        ({"rope_type": "linear", "factor": 2.0, "beta": 1}, "rope_scaling.beta: unknown key"),
        ({"rope_type": "linear"}, "rope_scaling.factor: is missing"),
        ("linear", "rope_scaling: 'linear' is not a mapping"),
    ],
)
def test_unknown_rope_scaling_is_refused(scaling, fault):
    with pytest.raises(ConversionError, match=f"hf/config.json, {fault}"):
        read(make_config() | {"rope_scaling": scaling})


def test_ill_typed_and_missing_entries_are_named_as_in_the_file():
    config = make_config() | {"num_hidden_layers": 2.5, "vocab_size": 0}
    del config["intermediate_size"]
    with pytest.raises(ConversionError) as caught:
        read(config)
    for fault in ("num_hidden_layers: '2.5' does not fit", "vocab_size: '0' does not", "intermediate_size: is missing"):
        assert f"hf/config.json, {fault}" in str(caught.value)
    with pytest.raises(ConversionError, match="vocab_size: is missing. Use the rows of the embedding"):
        read(make_config() | {"vocab_size": None})


def test_the_family_follows_from_the_model_type():
    assert family_of({"model_type": "qwen3"}, WHERE).name == "qwen3"
    with pytest.raises(ConversionError, match="config.json, model_type: 'gpt2' is not supported. Known are llama, q"):
        family_of({"model_type": "gpt2"}, WHERE)


def test_parameter_shapes_are_those_of_the_decoder():
    model = read(make_config("qwen3"), "qwen3")
    assert parameter_shapes(model) == {
        "embedding.weight": (100, 64),
        **{
            f"layers.{index}.{name}": shape
            for index in range(2)
            for name, shape in {
                "attention_norm.weight": (64,),
                "attention.qkv.weight": (8 * 24, 64),
                "attention.out.weight": (64, 4 * 24),
                "attention.q_norm.weight": (24,),
                "attention.k_norm.weight": (24,),
                "mlp_norm.weight": (64,),
                "mlp.gate_up.weight": (192, 64),
                "mlp.down.weight": (64, 96),
            }.items()
        },
        "norm.weight": (64,),
        "head.weight": (100, 64),
    }
