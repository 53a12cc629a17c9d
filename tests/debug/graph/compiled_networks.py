"""Networks that MindSpore compiles for this CPU, and what is then known of them."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest

from mindmodel.cli.debug import graph
from mindmodel.cli.main import main
from mindmodel.debug.graph.difference import changes
from mindmodel.debug.graph.summary import read_summary
from mindmodel.errors import GraphError
from mindmodel.recipe.dump import recipe_to_yaml

HERE = Path(__file__)
SIZE = 32


def line_of(text: str) -> str:
    """File and line of the network's code that holds a text."""
    lines = HERE.read_text().splitlines()
    return f"{HERE.name}:{next(number for number, line in enumerate(lines, 1) if text in line)}"


@pytest.fixture
def compile_network(runtime, without_fusion):
    """Function: compile a Cell that is called with one matrix."""
    import mindspore as ms

    from mindmodel.debug.graph.compile import compile_on_cpu

    def compile_one(cell, dtype="float32"):
        matrix = ms.Tensor(np.ones((SIZE, SIZE), np.float32), getattr(ms, dtype))
        return compile_on_cpu(cell, [matrix], runtime.cache)

    return compile_one


@pytest.fixture
def compile_recipe(small_recipe, runtime, without_fusion):
    """Function: compile the training step of the small recipe, or of another; a fault may be put into its decoder."""
    from mindmodel.debug.graph.compile import compile_on_cpu
    from mindmodel.recipe.rules import resolve_degrees, with_defaults
    from mindmodel.train.build import build

    def compile_one(recipe=small_recipe, fault=lambda decoder: None):
        recipe = resolve_degrees(with_defaults(recipe), 1)
        built = build(recipe)
        fault(built.decoder)
        return compile_on_cpu(built.whole, built.example(recipe), runtime.cache)

    return compile_one


@pytest.fixture
def printed(compile_recipe, monkeypatch, tmp_path, capsys):
    """Function: exit code and printed lines of `debug graph` on a recipe whose decoder may have a fault."""
    monkeypatch.chdir(tmp_path)

    def command(recipe, *fault):
        monkeypatch.setattr(graph, "_on_cpu", lambda recipe, terminal: compile_recipe(recipe, *fault))
        Path("recipe.yaml").write_text(recipe_to_yaml(recipe))
        return main(["debug", "graph", "recipe.yaml"]), capsys.readouterr().out.splitlines()

    return command


@pytest.fixture
def blocks(runtime):
    """Function: three layers of a Cell, called one after another."""
    from mindspore import nn

    class Net(nn.Cell):
        def __init__(self, layer):
            super().__init__()
            self.layers = nn.CellList([layer() for _ in range(3)])

        def construct(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    return Net


@pytest.fixture
def without_kernels(runtime):
    """A network with three operators that the CPU lacks, between others that it has or that are expanded."""
    import mindspore as ms
    from mindspore import mint, nn, ops

    class Lacking(nn.Cell):
        def __init__(self):
            super().__init__()
            self.gamma = ms.Parameter(np.ones(SIZE, np.float32), name="gamma")

        def construct(self, x):
            normed = ops.rms_norm(mint.matmul(x, x), self.gamma)[0]
            size = mint.norm(normed)
            heads = normed.reshape((1, 1, SIZE, SIZE)).astype(ms.float16)
            attended = ops.flash_attention_score(heads, heads, heads, 1, input_layout="BNSD")
            return ops.softmax(normed) + size, attended

    return Lacking()


def test_all_operators_without_a_kernel_are_listed_at_once_with_file_and_line(compile_network, without_kernels):
    step = compile_network(without_kernels)
    found = {one.operator: one for one in step.missing}
    assert set(found) == {"RmsNorm", "LinalgVectorNorm", "FlashAttentionScore"}
    calls = {"RmsNorm": "ops.rms_norm(", "LinalgVectorNorm": "mint.norm(", "FlashAttentionScore": "ops.flash_attention"}
    for operator, call in calls.items():
        (where,) = found[operator].where
        assert where.endswith(line_of(call))
        assert found[operator].reason == f"Unsupported op [{operator}] on CPU"
    assert found["RmsNorm"].types == "float32, float32" and found["FlashAttentionScore"].types.startswith("float16")
    assert step.summary("demo", "cpu").kinds["RmsNorm"] == 1


def test_a_kernel_for_other_dtypes_only_is_none(compile_network, runtime):
    from mindspore import nn, ops

    class Probabilities(nn.Cell):
        def __init__(self):
            super().__init__()
            self.softmax = ops.Softmax()

        def construct(self, x):
            return self.softmax(x)

    assert compile_network(Probabilities()).missing == ()
    (found,) = compile_network(Probabilities(), "bfloat16").missing
    assert (found.operator, found.types) == ("Softmax", "bfloat16")
    assert found.reason == "Select CPU operator[Softmax] fail! Unsupported data type!"


def alarms(lines):
    """Those that tell of a fault."""
    return [line for line in lines if line.startswith(("  never updated", "  held")) or "have none on this" in line]


def test_a_clean_step_gives_no_alarm(printed, small_recipe):
    code, lines = printed(small_recipe)
    assert code == 0 and alarms(lines) == [] and lines[-1] == "kernels     all operators have one"
    summary = read_summary(Path("runs/tests/graph/graph.json"))
    assert summary.layers["layers.0"][0] > 10 and summary.kinds["MatMul"] > 5
    for stage in ("1_parsed", "2_optimized", "3_kernels"):
        assert "mindmodel/layers/" in Path(f"runs/tests/graph/{stage}.ir").read_text()
    assert any(row.where.startswith("mindmodel/layers/cpu.py:") for row in summary.tensors)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 5))])
def test_a_mask_of_each_of_some_layers_is_named(printed, small_recipe, seed):
    import mindspore as ms

    draw = random.Random(seed)
    num_layers, seq_len = draw.randrange(2, 5), draw.choice((8, 12, 16))
    layers = draw.sample(range(num_layers), draw.randrange(2, num_layers + 1))

    def with_masks(decoder):
        for layer in layers:
            attention = decoder.layers[layer].attention.causal_attention
            mask = ms.Parameter(attention.mask, f"layers.{layer}.attention.causal_attention.mask", requires_grad=False)
            del attention.mask
            attention.mask = mask

    code, lines = printed(dataclasses.replace(
        small_recipe,
        model=dataclasses.replace(small_recipe.model, num_layers=num_layers),
        data=dataclasses.replace(small_recipe.data, seq_len=seq_len),
        train=dataclasses.replace(small_recipe.train, tokens_per_step=seq_len, seed=seed),
    ), with_masks)
    assert code == 0
    (alarm,) = alarms(lines)
    mask = f"layers.*.attention.causal_attention.mask float32[{seq_len}, {seq_len}]"
    assert alarm.startswith(f"  never updated: {mask}, {len(layers)} of them: ")


def test_a_whole_step_with_the_kernels_of_ascend_lists_them_and_nothing_else(compile_recipe, kernels_of):
    kernels_of("Ascend")
    found = {one.operator: one for one in compile_recipe().missing}
    forward = {"RmsNorm", "RotaryPositionEmbedding", "FlashAttentionScore", "Swiglu"}
    assert set(found) == forward | {f"{name}Grad" for name in forward} | {"Dot"}
    assert all(where.startswith("mindmodel/layers/") for name in forward for where in found[name].where)
    assert all(found[name].where for name in found)


def test_results_of_several_tensors_are_operands_of_the_operators_that_are_tried(compile_network, runtime):
    import mindspore as ms
    from mindspore import nn, ops

    class Halves(nn.Cell):
        def __init__(self):
            super().__init__()
            self.gamma = ms.Parameter(np.ones(SIZE, np.float32), name="gamma")

        def construct(self, x):
            return ops.rms_norm(ops.concat(ops.split(x, SIZE // 2)), self.gamma)[0]

    assert [one.operator for one in compile_network(Halves()).missing] == ["RmsNorm"]


def test_a_constant_mask_of_each_layer_is_merged_by_the_compiler(compile_network, blocks):
    import mindspore as ms
    from mindspore import nn

    class Masked(nn.Cell):
        def __init__(self):
            super().__init__()
            self.mask = ms.Tensor(np.triu(np.ones((SIZE, SIZE), np.float32), 1))

        def construct(self, x):
            return x + self.mask

    largest = compile_network(blocks(Masked)).summary("demo", "cpu").constants[0]
    assert (largest.type, largest.copies) == (f"float32[{SIZE}, {SIZE}]", 1)


def test_an_added_cast_is_seen(compile_network, blocks, runtime):
    import mindspore as ms
    from mindspore import nn, ops

    class Plain(nn.Cell):
        def construct(self, x):
            return ops.exp(x)

    class Cast(nn.Cell):
        def construct(self, x):
            return ops.exp(x).astype(ms.float16).astype(ms.float32)

    old, new = (compile_network(blocks(layer)).summary("demo", "cpu") for layer in (Plain, Cast))
    found = changes(old, new)
    assert "cast float32 to float16 of layers.*: 0 -> 3" in found and "operator Cast: 0 -> 6" in found
    assert all(cast.where.endswith(line_of("astype(ms.float16).astype")) for cast in new.casts)


def test_a_network_that_is_wrong_in_itself_is_refused(compile_network, runtime):
    from mindspore import nn, ops

    class Wrong(nn.Cell):
        def construct(self, x):
            return ops.matmul(x, ops.zeros((SIZE + 1, SIZE)))

    with pytest.raises(GraphError, match="the training step does not compile: .*MatMul"):
        compile_network(Wrong())
