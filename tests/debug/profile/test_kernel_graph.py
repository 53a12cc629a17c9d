"""MindSpore's last readable graph: kernels with dtypes, fused ones with their operators, and what passes values on."""

from __future__ import annotations

import pytest

from mindmodel.debug.profile.flop import flop_of
from mindmodel.debug.profile.kernel_graph import Value, read_kernels
from mindmodel.errors import GraphError

TEXT = """\
# IR entry: @kernel_graph0
%para1_x: <Tensor[Float32], (4, 8)> : [4, 8]  :  <Float32xDefaultFormat[const vector]{4, 8}>  :  IsWeight: false
%para2_up.weight: <Ref[Tensor[Float32]], (16, 8)>  :  has_default  :  IsWeight: true

subgraph @2seg_trans__anonymous__7(%para3_P_1, %para4_P_2) {
  %0(CNode_8) = PrimFunc_Mul(%para3_P_1, %para4_P_2) primitive_attrs: {a: Bool(1)}
      : (<Tensor[Float32], (4, 16)>, <Tensor[Float32], (4, 16)>) -> (<Tensor[Float32], (4, 16)>)
      : (<Float32xDefaultFormat[const vector]{4, 16}>, <Float32xDefaultFormat[const vector]{4, 16}>) -> \
(<Float32xDefaultFormat[const vector]{4, 16}>)
      # Fullname with scope: (Default/network-Net/mlp-MLP/Mul-op0)
      # In file net.py:3, 1~2/    y * y/
  Return(%0)
      # Fullname with scope: (Default/Return-op0)
}
subgraph @kernel_graph0() {
  %0(weight) = Load(%para2_up.weight, UMonad[U]) cnode_attrs: {checkpoint: Bool(1)}
      : (<Ref[Tensor[Float32]], (16, 8)>, <UMonad, NoShape>) -> (<Tensor[Float32], (16, 8)>)
      # Fullname with scope: (Default/network-Net/Load-op0)
  %1(y) = PrimFunc_MatMul(%para1_x, %0, Bool(0), Bool(1)) {instance name: matmul} primitive_attrs: {dst_type: F32}
      : (<Tensor[Float32], (4, 8)>, <Tensor[Float32], (16, 8)>, <Bool>, <Bool>) -> (<Tensor[Float32], (4, 16)>)
      : (<Float32xDefaultFormat[const vector]{4, 8}>, <Float32xDefaultFormat[const vector]{16, 8}>, \
<BoolxDefaultFormat[const vector]{}>, <BoolxDefaultFormat[const vector]{}>) -> \
(<Float32xDefaultFormat[const vector]{4, 16}>)
      # Fullname with scope: (Default/network-Net/up-Linear/MatMul-op0)
  %2(CNode_9) = Custom(%para1_x, %0, Tensor(shape=[2], dtype=Int32, value=[4 2])) primitive_attrs: \
{func_name: "/cache/lib.so:linear_backward", multi: Bool(1)} cnode_attrs: {checkpoint: Bool(1)}
      : (<Float32xDefaultFormat[const vector]{4, 8}>, <Float32xDefaultFormat[const vector]{16, 8}>, \
<Int32xDefaultFormat[const vector]{2}>) -> (<BFloat16xDefaultFormat[const vector]{4, 8}>, \
<Float32xDefaultFormat[const vector]{16, 8}>)
      # Fullname with scope: (Default/network-Net/up-Linear/Custom-op0)
  %3(CNode_10) = TupleGetItem(%2, I64(1)) cnode_attrs: {checkpoint: Bool(1)}
      # Fullname with scope: (Default/TupleGetItem-op0)
  %4(CNode_11) = PrimFunc_Reshape(%1, (I64(4), I64(16))) primitive_attrs: {a: Bool(1)}
      : (<Float32xDefaultFormat[const vector]{4, 16}>, <Int64xDefaultFormat[const vector]{}>) -> \
(<Float32xDefaultFormat[const vector]{4, 16}>)
      # Fullname with scope: (Default/network-Net/Reshape-op0)
  %5(CNode_12) = call @2seg_trans__anonymous__7(%4, %1)
      : (<Float32xDefaultFormat[const vector]{4, 16}>, <Float32xDefaultFormat[const vector]{4, 16}>) -> \
(<Float32xDefaultFormat[const vector]{4, 16}>)
      # Fullname with scope: (Default/GraphKernel_Mul_fusion-op0)
  %6(CNode_13) = MakeTuple(%5, %3)
      # Fullname with scope: (Default/MakeTuple-op0)
  %7(CNode_14) = Depend(%6, %2) primitive_attrs: {side_effect_propagate: I64(1)}
      # Fullname with scope: (Default/Depend-op0)
  Return(%7)
      # Fullname with scope: (Default/Return-op1)
}
"""


@pytest.fixture(scope="module")
def graph():
    return read_kernels(TEXT)


def test_kernels_have_the_names_that_the_profiler_gives_them(graph):
    assert [(kernel.operator, scope) for scope, kernel in graph.by_scope.items()] == [
        ("MatMul", "Default/network-Net/up-Linear/MatMul-op0"),
        ("Custom:linear_backward", "Default/network-Net/up-Linear/Custom-op0"),
        ("Reshape", "Default/network-Net/Reshape-op0"),
        ("fused Mul", "Default/GraphKernel_Mul_fusion-op0"),
    ]
    assert [part.scope for part in graph.kernels["%5"].parts] == ["Default/network-Net/mlp-MLP/Mul-op0"]


def test_types_are_those_of_the_kernel(graph):
    backward = graph.kernels["%2"]
    assert list(map(str, backward.operands)) == ["float32[4, 8]", "float32[16, 8]", "int32[2]"]
    assert list(map(str, backward.results)) == ["bfloat16[4, 8]", "float32[16, 8]"]
    assert graph.kernels["%1"].flags == (False, True) and graph.kernels["%4"].flags == ()


def test_tensors_and_parameters_are_followed_through_what_only_passes_them_on(graph):
    assert graph.parameters["%1"] == ("x", "up.weight") and graph.parameters["%5"] == ()
    assert graph.sources["%5"] == (Value(kernel="%4", index=0), Value(kernel="%1", index=0))
    assert graph.outputs == {Value(kernel="%5", index=0), Value(kernel="%2", index=1)}
    assert graph.readers == {Value(kernel="%1", index=0): ["%4", "%5"], Value(kernel="%4", index=0): ["%5"]}


def test_a_view_that_did_not_run_is_what_it_reads(graph):
    ran = graph.of_those_that_ran({scope for scope in graph.by_scope if "Reshape" not in scope})
    assert list(ran.kernels) == ["%1", "%2", "%5"]
    assert ran.sources["%5"] == (Value(kernel="%1", index=0), Value(kernel="%1", index=0))


def test_matrix_products_are_counted(graph):
    assert [flop_of(kernel) for kernel in graph.kernels.values()] == [2 * 4 * 8 * 16, 2 * 2 * 4 * 8 * 16, 0, 0]


@pytest.mark.parametrize("name, products", [("attention_forward", 2), ("attention_qk_norm_backward", 5)])
def test_attention_is_counted_over_the_pairs_that_its_mask_leaves(name, products):
    batch, heads, seq_len, size = 2, 4, 8, 16
    kinds = f"{batch * seq_len}, 96", f"{seq_len}, {size}", f"{batch}, {heads}, {seq_len}"
    types = ", ".join(f"<Float32xDefaultFormat[const vector]{{{kind}}}>" for kind in kinds)
    text = f"""\
subgraph @kernel_graph0() {{
  %1(y) = Custom(%para1_x) primitive_attrs: {{func_name: "/cache/lib.so:{name}"}}
      : ({types}) -> (<Float32xDefaultFormat[const vector]{{{batch * seq_len}, {heads * size}}}>)
      # Fullname with scope: (Default/Custom-op0)
  Return(%1)
}}"""
    (kernel,) = read_kernels(text).kernels.values()
    assert flop_of(kernel) == products * 2 * size * heads * batch * (seq_len * (seq_len + 1) // 2)


@pytest.mark.parametrize("text", ["", TEXT.replace("Default/", "").replace("# Fullname", "# Name")])
def test_a_text_that_is_no_such_graph_is_refused(text):
    with pytest.raises(GraphError, match="graph of kernels is not understood: .* It is read as 2.9 writes it."):
        read_kernels(text)
