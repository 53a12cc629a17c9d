"""MindSpore's compile errors, from excerpts of logs as it writes them."""

from __future__ import annotations

import pytest

from mindmodel.dryrun.translate import reason
from mindmodel.parallel.plans.decoder import decoder_plan
from mindmodel.recipe.load import recipe_from_dict

FAILED = """\
[ERROR] ME(1:7f,MainProcess):2026-01-01 [mindspore/run_check.py:350] CheckFailed: No module named 'te'
[ERROR] PARALLEL(1,7f,python):2026-01-01 [mindspore/ops_info/a.cc:277] Check] {info}3131: {why}
[ERROR] PARALLEL(1,7f,python):2026-01-01 [mindspore/operator_info.cc:1457] Infer] {info}3131: CheckStrategy failed.
[ERROR] PARALLEL(1,7f,python):2026-01-01 [mindspore/operator_info.cc:1392] Init] {info}3131 : Init failed.
Traceback (most recent call last):
  File "child.py", line 62, in _forked
RuntimeError: Failure:operator {operator} init failed

- The Function Call Stack: (For framework developers)
{calls}
- The Traceback of Net Construct Code:
In file decoder.py:1, 7~30/return self.decoder.nowhere(x)/
"""


def call(line, expression):
    begin = line.index(expression)
    return f"In file layer.py:35, {begin}~{begin + len(expression)}/{line}/"


MATMUL = call("        return self.matmul(x, ops.cast(w))", "self.matmul(x, ops.cast(w))")
LINEAR = call("        return self.linear(x, self.weight)", "self.linear(x, self.weight)")
BRANCH = "        return self.out(self.causal_attention(self.qkv(x)))"
OUT, QKV = call(BRANCH, "self.out(self.causal_attention(self.qkv(x)))"), call(BRANCH, "self.qkv(x)")
ATTENTION = call("        x = self.attention_add(x, self.attention(branch))", "self.attention(branch)")
LAYERS = call("        for layer in self.layers:", "self.layers")
DECODER = call("        return self.loss(self.decoder.hidden(ids), labels)", "self.decoder.hidden(ids)")
SWIGLU = call("        return self.swiglu(x)", "self.swiglu(x)")
MLP = call("        x = self.mlp_add(x, self.mlp(branch))", "self.mlp(branch)")

CASES = [
    (
        "MatMulInfo", "The strategy is ((2), (1, 2)), strategy len: 1 is not equal to inputs len: 2", "MatMul",
        (MATMUL, LINEAR, QKV, ATTENTION, LAYERS, DECODER), "decoder.layers.*.attention.qkv.linear.matmul",
    ),
    (
        "MatMulInfo", "The shape of first input (48, 64) cannot be divided by the strategy (5, 2)", "MatMul",
        (MATMUL, LINEAR, OUT, ATTENTION, LAYERS, DECODER), "decoder.layers.*.attention.out.linear.matmul",
    ),
    (
        "SwigluInfo", "The strategy corresponding to axis dimension(2) is not 1", "Swiglu",
        (SWIGLU, SWIGLU, MLP, LAYERS, DECODER), "decoder.layers.*.mlp.swiglu.swiglu",
    ),
]


@pytest.fixture
def plan():
    recipe = recipe_from_dict(
        {
            "name": "small",
            "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 8, "ffn_size": 64, "vocab_size": 512},
            "data": {"source": "stdlib", "seq_len": 16, "tokenizer_vocab_size": 300},
            "train": {"steps": 1, "tokens_per_step": 64},
            "parallel": {"dp": 2, "tp": 2},
        },
        "here",
    )
    return decoder_plan(recipe.model, recipe.parallel)


def written(folder, text):
    (folder / "log.txt").write_text(text)
    return folder / "log.txt"


@pytest.mark.parametrize("info, why, operator, calls, path", CASES)
def test_an_operator_that_cannot_be_cut_is_named_with_its_path_its_rule_and_the_compilers_reason(
    tmp_path, plan, info, why, operator, calls, path
):
    log = written(tmp_path, FAILED.format(info=info, why=why, operator=operator, calls="\n".join(calls)))
    rule = next(rule for rule in plan.layouts if rule.path == path)
    cut = ", ".join(map(str, rule.inputs))
    assert reason(log, plan) == f"{operator}: {why}. It is '{path}', cut by the plan's rule of that path over {cut}"


def test_where_no_rule_is_found_the_reason_stands_alone(tmp_path, plan):
    log = written(tmp_path, FAILED.format(info="AddInfo", why="no", operator="Add", calls=MATMUL))
    assert reason(log, plan) == "Add: no"


def test_without_a_logged_reason_it_is_the_last_exception(tmp_path):
    log = written(tmp_path, "ValueError: first\nRuntimeError: second\n")
    assert reason(log) == "RuntimeError: second"


def test_a_log_without_any_reason_says_so(tmp_path):
    assert reason(tmp_path / "absent") == "it gave no reason; the machine may lack memory"
