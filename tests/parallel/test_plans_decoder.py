from __future__ import annotations

import dataclasses

import pytest

from mindmodel.models.family import parameter_shapes
from mindmodel.parallel.mesh import Mesh, local_shape, mesh_of
from mindmodel.parallel.plan import match_all, matches
from mindmodel.parallel.plans.decoder import decoder_plan, layer_places
from mindmodel.recipe.schema import ModelSection, ParallelSection

SIZES = {"hidden_size": 32, "num_heads": 8, "num_kv_heads": 4, "head_size": 8, "ffn_size": 64, "vocab_size": 64}
MODELS = {
    "llama": ModelSection(num_layers=3, qk_norm=False, **SIZES),
    "qwen3": ModelSection(num_layers=3, family="qwen3", qk_norm=True, tied_embeddings=True, **SIZES),
}
LAYOUTS = {
    "alone": ParallelSection(dp=1),
    "dp tp": ParallelSection(dp=2, tp=2),
    "sequence_parallel": ParallelSection(dp=2, tp=2, sequence_parallel=True),
    "parameters": ParallelSection(dp=2, shard_optimizer="parameters", recompute="full"),
    "tokens kept": ParallelSection(dp=2, tp=2, sequence_parallel=True, gathered_tokens="kept"),
    "cp": ParallelSection(dp=1, cp=4),
    "copied heads": ParallelSection(dp=1, tp=8),
    "pp": ParallelSection(dp=1, pp=2, stages=(1, 2), recompute="full"),
    "recompute": ParallelSection(dp=2, recompute="selective", recompute_layers=2),
    "compute": ParallelSection(dp=2, tp=2, sequence_parallel=True, shard_optimizer="states", reduce_dtype="compute"),
}


@pytest.fixture
def network_of(kernels_of, monkeypatch):
    """Function: the network of a model with Ascend's operators, and a layout's own layers for the first rank."""

    def build(model, parallel, z_loss=0.0):
        import mindspore as ms
        from mindspore import ops

        from mindmodel.models.decoder import Decoder, DecoderLoss
        from mindmodel.parallel.apply import put_local_layers
        from mindmodel.parallel.local_layers import ThisRank

        kernels_of("Ascend")
        monkeypatch.setattr(ThisRank, "collective", lambda *_: ops.ReLU())  # a real one wants its ranks
        network = DecoderLoss(Decoder(model, 16), model.vocab_size, z_loss)
        here = ThisRank(mesh=mesh_of(parallel), rank=0, parallel=parallel, dtype=ms.float32)
        put_local_layers(network, decoder_plan(model, parallel), here)
        return network

    return build


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("z_loss", [0.0, 1e-4])
def test_every_operator_of_the_model_has_one_rule_and_no_rule_is_left_over(network_of, family, layout, z_loss):
    from mindmodel.parallel.apply import cut_operators

    model, parallel = MODELS[family], LAYOUTS[layout]
    found = cut_operators(network_of(model, parallel, z_loss))
    assert list(match_all(found, decoder_plan(model, parallel).layouts, "operator")) == found


@pytest.mark.parametrize("family", MODELS)
def test_a_plan_can_be_applied_to_the_model(network_of, family):
    from mindmodel.parallel.apply import apply_plan

    for layout in LAYOUTS.values():
        apply_plan(network_of(MODELS[family], layout), decoder_plan(MODELS[family], layout), mesh_of(layout))


@pytest.mark.parametrize("family", MODELS)
def test_every_parameter_has_one_rule_and_a_dim_for_each_of_its_axes(family):
    model = MODELS[family]
    plan, shapes = decoder_plan(model, LAYOUTS["dp tp"]), parameter_shapes(model)
    assert match_all(shapes, plan.parameters, "parameter").keys() == shapes.keys()
    for name, shape in shapes.items():
        assert len(plan.axes_of(name)) == len(shape)


def test_norms_are_whole_on_every_rank_and_matrices_are_cut_over_tp():
    model, mesh = MODELS["qwen3"], Mesh(dp=2, tp=2)
    plan = decoder_plan(model, LAYOUTS["dp tp"])
    for name, shape in parameter_shapes(model).items():
        local = local_shape(shape, plan.axes_of(name), mesh)
        assert local == shape if len(shape) == 1 else sorted(local) == sorted((shape[0] // 2, shape[1])) or (
            local == (shape[0], shape[1] // 2)
        )


def test_ranks_that_share_a_kv_head_get_copies_of_it():
    plan = decoder_plan(MODELS["llama"], LAYOUTS["copied heads"])
    assert [rule.copies for rule in plan.copies] == [2]
    cuts = {rule.path.rsplit(".", 1)[-1]: rule.inputs[0] for rule in plan.layouts}
    assert cuts["split"] == ("dp", "cp", 4, None, None) and cuts["k_repeat"] == ("dp", "cp", 4, 2, None)
    assert decoder_plan(MODELS["llama"], LAYOUTS["dp tp"]).copies == ()


def layers(number):
    return dataclasses.replace(MODELS["llama"], num_layers=number)


def test_the_last_stage_has_fewer_layers_where_the_output_layer_is_large():
    sizes = {"hidden_size": 4096, "num_heads": 32, "num_kv_heads": 8, "head_size": 128, "ffn_size": 14336}
    large = ModelSection(num_layers=32, vocab_size=128256, **sizes)
    stages = [stage for stage, _ in layer_places(large, ParallelSection(dp=1, pp=4))]
    assert [stages.count(stage) for stage in range(4)] == [8, 9, 9, 6]


def test_layers_are_dealt_out_to_stages_in_order():
    assert layer_places(layers(5), ParallelSection(dp=1, pp=2)) == [(0, 0), (0, 0), (0, 0), (1, 0), (1, 0)]
    assert layer_places(layers(3), ParallelSection(dp=1, pp=2, stages=(1, 2))) == [(0, 0), (1, 0), (1, 0)]
    assert layer_places(layers(3), ParallelSection(dp=1)) == [(0, 0)] * 3


def test_interleaved_stages_have_several_chunks():
    places = [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert layer_places(layers(4), ParallelSection(dp=1, pp=2, interleave=2)) == places
    twice = [place for place in places for _ in range(2)]
    assert layer_places(layers(8), ParallelSection(dp=1, pp=2, interleave=2)) == twice


def test_the_first_stage_has_the_embedding_and_the_last_norm_head_and_loss():
    plan = decoder_plan(MODELS["llama"], LAYOUTS["pp"])
    names = ["embedding", "layers.0.mlp.down", "layers.1.mlp.down", "layers.2.mlp.down", "norm", "head"]
    assert [plan.stage_of(f"{name}.weight") for name in names] == [0, 0, 1, 1, 1, 1]
    assert [rule.stage for rule in plan.stages if rule.path == "loss"] == [1]


def test_without_a_pipeline_there_are_no_stages():
    assert decoder_plan(MODELS["llama"], LAYOUTS["dp tp"]).stages == ()


def recomputed(**parallel):
    return [rule.path for rule in decoder_plan(MODELS["llama"], ParallelSection(dp=1, **parallel)).recompute]


def test_whole_blocks_are_computed_again_or_what_is_cheap_in_them():
    assert recomputed() == []
    assert recomputed(recompute="full") == ["decoder.layers.0", "decoder.layers.1", "decoder.layers.2"]
    assert recomputed(recompute="selective", recompute_layers=1) == [
        "decoder.layers.0.attention_norm.residual_norm.rms_norm",
        "decoder.layers.0.mlp_norm.residual_norm.rms_norm",
        "decoder.layers.0.mlp.swiglu.swiglu",
        "decoder.layers.0.mlp.swiglu.flat",
    ]


def test_gathered_tokens_are_not_kept():
    assert recomputed(tp=2, sequence_parallel=True) == [
        "decoder.layers.*.attention.qkv.linear.tokens.gather", "decoder.layers.*.mlp.gate_up.linear.tokens.gather"
    ]


def test_unless_a_recipe_says_so_and_then_norms_are_not_computed_again_either():
    kept = {"tp": 2, "sequence_parallel": True, "gathered_tokens": "kept"}
    assert recomputed(**kept) == []
    assert recomputed(**kept, recompute="selective", recompute_layers=1) == [
        "decoder.layers.0.mlp.swiglu.swiglu", "decoder.layers.0.mlp.swiglu.flat"
    ]


def own_layers(layout):
    return [rule.layer for rule in decoder_plan(MODELS["llama"], LAYOUTS[layout]).local]


def test_layers_that_gather_sum_and_slice_by_themselves_stand_where_the_layout_needs_them():
    assert own_layers("recompute") == ["logits"]
    assert own_layers("dp tp") == ["logits", "embedding"]
    assert own_layers("sequence_parallel") == ["logits", "embedding", *["linear of tokens"] * 2]
    assert own_layers("parameters") == ["logits", "norm apart", "norm apart"]
    assert own_layers("compute") == ["logits", "embedding", *["linear of tokens"] * 2, *["linear"] * 2]


def test_the_limit_of_layers_computed_again_holds_for_each_stage():
    limited = recomputed(recompute="full", recompute_layers=1, pp=2, stages=(1, 2))
    assert limited == ["decoder.layers.0", "decoder.layers.1"]
    assert recomputed(recompute="full", recompute_layers=0) == []


def test_sequence_parallel_cuts_residuals_by_tokens_over_tp_too():
    def norm(layout):
        rules = decoder_plan(MODELS["llama"], LAYOUTS[layout]).layouts
        return next(rule for rule in rules if matches(rule.path, "decoder.layers.0.mlp_norm.residual_norm.rms_norm"))

    assert norm("dp tp").inputs[0] == (("dp", "cp"), None)
    assert norm("sequence_parallel").inputs[0] == (("dp", "cp", "tp"), None)
