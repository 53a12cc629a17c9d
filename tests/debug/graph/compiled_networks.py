"""Networks that MindSpore compiles for this CPU, and what is then known of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mindmodel.debug.graph.difference import changes
from mindmodel.errors import GraphError

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
    """Function: compile the training step of the small recipe."""
    from mindmodel.debug.graph.compile import compile_on_cpu
    from mindmodel.recipe.rules import resolve_degrees, with_defaults
    from mindmodel.train.build import build

    def compile_one():
        recipe = resolve_degrees(with_defaults(small_recipe), 1)
        built = build(recipe)
        return compile_on_cpu(built.whole, built.example(recipe), runtime.cache)

    return compile_one


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


def test_a_clean_step_gives_no_alarm(compile_recipe):
    step = compile_recipe()
    summary = step.summary("demo", "cpu")
    assert summary.missing == () and summary.duplicates == () and summary.frozen == ()
    assert summary.layers["layers.0"][0] > 10 and summary.kinds["MatMul"] > 5
    assert all("mindmodel/layers/" in step.stages[name] for name in ("1_parsed", "2_optimized", "3_kernels"))
    assert any(row.where.startswith("mindmodel/layers/cpu.py:") for row in summary.tensors)


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


def test_a_mask_of_each_layer_is_seen(compile_network, blocks):
    import mindspore as ms
    from mindspore import nn

    class Masked(nn.Cell):
        def __init__(self):
            super().__init__()
            mask = np.triu(np.ones((SIZE, SIZE), np.float32), 1)
            self.mask = ms.Parameter(mask, name="mask", requires_grad=False)

        def construct(self, x):
            return x + self.mask

    (found,) = compile_network(blocks(Masked)).summary("demo", "cpu").frozen
    assert (found.name, found.count, found.num_bytes) == ("layers.*.mask", 3, 3 * 4 * SIZE**2)


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
