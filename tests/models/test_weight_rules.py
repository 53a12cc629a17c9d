"""Rules are invertible by construction, and the row order of fused tensors is the documented one."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mindmodel.errors import ConversionError
from mindmodel.models.family import find_family, parameter_shapes
from mindmodel.models.weight_rules import RowOrder, ffn_blocks, join_rows, kv_groups, split_rows, to_ours, to_theirs
from mindmodel.recipe.schema import ModelSection
from mindmodel.tensor_file import LazyTensor

WHERE = Path("step_1")


def make_model(**changes):
    sizes = {"hidden_size": 12, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_size": 6, "ffn_size": 24}
    return ModelSection(**{**sizes, "vocab_size": 10, "qk_norm": False, **changes})


def lazy(array):
    return LazyTensor(shape=array.shape, dtype=array.dtype, read=lambda: array)


def random_tensors(shapes, seed=0):
    generator = np.random.default_rng(seed)
    return {name: lazy(generator.standard_normal(shape).astype(np.float32)) for name, shape in shapes.items()}


def export(model, ours):
    return to_theirs(find_family(model.family).rules, model, parameter_shapes(model), ours, WHERE)


def load(model, theirs):
    return to_ours(find_family(model.family).rules, model, parameter_shapes(model), theirs, WHERE)


def random_models():
    """Sizes of every kind: all heads of their own, grouped (GQA), one key/value head (MQA), odd widths."""
    generator = np.random.default_rng(7)
    for number in range(12):
        kv_heads = int(generator.choice([1, 2, 3]))
        yield make_model(
            family=("llama", "qwen3")[number % 2],
            qk_norm=bool(number % 2),
            num_heads=kv_heads * int(generator.choice([1, 2, 4])),
            num_kv_heads=kv_heads,
            head_size=2 * int(generator.integers(1, 5)),
            hidden_size=int(generator.integers(3, 20)),
            ffn_size=int(generator.choice([1, 6, 7, 16, 48, 80])),
            num_layers=int(generator.integers(1, 13)),
            tied_embeddings=bool(generator.integers(2)),
        )


@pytest.mark.parametrize("model", list(random_models()))
def test_there_and_back_is_the_same_bit_for_bit(model):
    ours = random_tensors(parameter_shapes(model))
    back = load(model, export(model, ours))
    assert list(back) == list(dict.fromkeys(back)) and set(back) == set(ours)
    for name, tensor in ours.items():
        assert back[name].shape == tensor.shape
        np.testing.assert_array_equal(back[name].read(), tensor.read(), strict=True)


@pytest.mark.parametrize("model", list(random_models()))
def test_back_and_there_is_the_same_bit_for_bit(model):
    rules = find_family(model.family).rules
    shapes = {n: t.shape for n, t in export(model, random_tensors(parameter_shapes(model))).items()}
    theirs = random_tensors(shapes)
    back = to_theirs(rules, model, parameter_shapes(model), load(model, theirs), WHERE)
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(back[name].read(), tensor.read(), strict=True)


def test_a_fused_qkv_holds_for_each_kv_head_its_queries_then_key_then_value():
    model = make_model(num_heads=6, num_kv_heads=2, head_size=2)
    # The hundreds name the part (query 0, key 1, value 2), the tens the head, the units the row.
    q, k, v = (
        np.array([[100 * part + 10 * head + row] for head in range(heads) for row in range(2)])
        for part, heads in enumerate((6, 2, 2))
    )
    fused = join_rows([q, k, v], kv_groups(model)).ravel().tolist()
    assert fused == [0, 1, 10, 11, 20, 21, 100, 101, 200, 201] + [30, 31, 40, 41, 50, 51, 110, 111, 210, 211]


def test_a_fused_gate_up_holds_for_each_block_the_gate_then_up():
    model = make_model(ffn_size=12)  # 4 blocks of 3
    gate, up = np.arange(12).reshape(12, 1), 100 + np.arange(12).reshape(12, 1)
    fused = join_rows([gate, up], ffn_blocks(model)).ravel().tolist()
    assert fused == [
        row for block in range(0, 12, 3) for part in (0, 100) for row in range(part + block, part + block + 3)
    ]


def test_gate_and_up_do_not_change_places():
    model = make_model()
    ours = random_tensors(parameter_shapes(model))
    theirs = {name: tensor for name, tensor in export(model, ours).items() if name.startswith("model.layers.1.mlp")}
    fused = ours["layers.1.mlp.gate_up.weight"].read()
    rows = model.ffn_size // model.ffn_blocks
    blocks = fused.reshape(model.ffn_blocks, 2, rows, 12)
    for place, part in enumerate(("gate", "up")):
        read = theirs[f"model.layers.1.mlp.{part}_proj.weight"].read()
        np.testing.assert_array_equal(read.reshape(-1, rows, 12), blocks[:, place])


def test_query_heads_of_a_group_stay_with_their_kv_head():
    model = make_model(num_heads=4, num_kv_heads=2, head_size=6)
    theirs = export(model, random_tensors(parameter_shapes(model)))
    fused = load(model, theirs)["layers.0.attention.qkv.weight"].read().reshape(2, 4, 6, 12)  # group, head, row, in
    q, k, v = (theirs[f"model.layers.0.self_attn.{name}_proj.weight"].read().reshape(-1, 6, 12) for name in "qkv")
    for head in range(4):
        np.testing.assert_array_equal(fused[head // 2, head % 2], q[head])
    np.testing.assert_array_equal(fused[:, 2], k)
    np.testing.assert_array_equal(fused[:, 3], v)


def test_split_is_the_inverse_of_join_for_uneven_shares():
    order = RowOrder(num_groups=3, shares=(4, 1, 2))
    parts = [np.random.default_rng(1).standard_normal((3 * share * 5, 2)) for share in order.shares]
    whole = join_rows(parts, order)
    for number, part in enumerate(parts):
        np.testing.assert_array_equal(split_rows(whole, order, number), part)


def test_nothing_is_read_before_it_is_asked_for():
    model = make_model()

    def fail():
        raise RuntimeError("read")

    tensors = random_tensors(parameter_shapes(model))
    ours = {name: dataclasses.replace(tensor, read=fail) for name, tensor in tensors.items()}
    theirs = export(model, ours)
    assert load(model, theirs).keys() == ours.keys()
    with pytest.raises(RuntimeError, match="read"):
        theirs["model.layers.0.self_attn.q_proj.weight"].read()


def test_the_names_are_those_of_hugging_face():
    model = make_model(num_layers=1)
    assert set(export(model, random_tensors(parameter_shapes(model)))) == {
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.0.self_attn.v_proj.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
    }


def test_all_that_is_missing_unexpected_or_misshapen_is_listed():
    model = make_model(num_layers=1)
    ours = random_tensors(parameter_shapes(model))
    del ours["norm.weight"]
    ours["layers.1.mlp.down.weight"] = lazy(np.zeros((2, 2), np.float32))
    ours["layers.0.attention.qkv.weight"] = lazy(np.zeros((12, 48), np.float32))
    ours["head.weight"] = lazy(np.zeros((10, 12), np.int8))
    with pytest.raises(ConversionError) as caught:
        export(model, ours)
    assert str(caught.value).splitlines() == [
        "step_1: the tensors are not those of the model:",
        "  dtype: head.weight is int8; weights are float32, bfloat16, float16",
        "  missing: norm.weight [12]",
        "  shape: layers.0.attention.qkv.weight is [12, 48], the model needs [48, 12]",
        "  unexpected: layers.1.mlp.down.weight [2, 2]",
    ]


def test_their_tensors_are_checked_too():
    model = make_model(num_layers=1)
    theirs = export(model, random_tensors(parameter_shapes(model)))
    theirs["model.layers.0.self_attn.q_proj.bias"] = lazy(np.zeros(24, np.float32))
    k_proj = theirs.pop("model.layers.0.self_attn.k_proj.weight")
    theirs["model.layers.0.self_attn.v_proj.weight"] = lazy(k_proj.read().T)
    with pytest.raises(ConversionError) as caught:
        load(model, theirs)
    assert str(caught.value).splitlines()[1:] == [
        "  missing: model.layers.0.self_attn.k_proj.weight [12, 12]",
        "  unexpected: model.layers.0.self_attn.q_proj.bias [24]",
    ]
    theirs["model.layers.0.self_attn.k_proj.weight"] = lazy(np.zeros((12, 6), np.float32))
    with pytest.raises(ConversionError, match=r"k_proj.weight is \[12, 6\], the model needs \[12, 12\]"):
        load(model, theirs)


def test_parts_of_different_dtypes_are_refused():
    model = make_model(num_layers=1)
    theirs = export(model, random_tensors(parameter_shapes(model)))
    theirs["model.layers.0.mlp.up_proj.weight"] = lazy(np.zeros((24, 12), np.float16))
    with pytest.raises(ConversionError, match="must have one dtype: .*gate_proj.* float32, .*up_proj.* float16"):
        load(model, theirs)


def test_a_tied_model_has_no_output_layer_on_either_side():
    model = make_model(tied_embeddings=True)
    theirs = export(model, random_tensors(parameter_shapes(model)))
    assert "lm_head.weight" not in theirs and "head.weight" not in load(model, theirs)


def test_an_output_layer_that_is_there_although_tied_must_be_the_embedding():
    model = make_model(tied_embeddings=True)
    theirs = export(model, random_tensors(parameter_shapes(model)))
    embedding = theirs["model.embed_tokens.weight"].read()
    assert "head.weight" not in load(model, {**theirs, "lm_head.weight": lazy(embedding.copy())})
    for other in (embedding + 1, embedding.astype(np.float16)):
        with pytest.raises(ConversionError, match="lm_head.weight differs from the embedding, although tie_word"):
            load(model, {**theirs, "lm_head.weight": lazy(other)})


def test_buffers_that_follow_from_the_configuration_are_dropped():
    model = make_model()
    theirs = export(model, random_tensors(parameter_shapes(model)))
    buffers = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": lazy(np.ones(3, np.float32)) for n in range(2)}
    assert load(model, {**theirs, **buffers}).keys() == parameter_shapes(model).keys()
