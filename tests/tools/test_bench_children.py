"""The protocol between a benchmark and its children, with children that need no framework; data and recipes."""

from __future__ import annotations

import argparse
import os

import numpy as np
import pytest
from bench import rivals
from bench.rivals import Child, ChildFailed
from bench.sizes import NUM_BATCHES, SIZES, batch, recipe_of

CHILD = """
import os, sys
from bench.child import serve

def load(spec):
    def build():
        print("frameworks talk")
        os.system("echo and so do their libraries")
        return lambda index: index if index != 9 else 1 / 0
    return build

serve(load)
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Function: a child of the module above."""
    tools = tmp_path / "tools"
    (tools / "bench").mkdir(parents=True)
    (tools / "bench" / "made_up.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tools))
    children = []

    def call(name="child", module="made_up", warm_up=2) -> Child:
        children.append(Child(module, {}, tmp_path / name, threads=1, warm_up=warm_up))
        return children[-1]

    yield call
    for child in children:
        child.close()


def test_a_child_warms_up_and_works_when_it_is_asked_to(start, monkeypatch):
    monkeypatch.setattr(rivals, "TURN_S", 0)
    child = start()
    child.warm_up()
    assert child.results == [0, 1] and child.compile_s > 0 and child.rounds == []
    child.take_turn(at_least=3)
    assert child.results == [0, 1, 2, 3, 4] and len(child.rounds[0]) == 3
    assert len(child.foreign_cores) == 1


def test_every_round_begins_with_another_rival(monkeypatch):
    turns = []

    class Rival:
        def __init__(self, name):
            self.name = name

        def take_turn(self, at_least):
            turns.append(self.name)

    rivals.interleave([Rival("a"), Rival("b"), Rival("c")], 3)
    assert "".join(turns) == "abcbcacab"


def test_rivals_that_race_have_warmed_up_and_ended(start, monkeypatch):
    monkeypatch.setattr(rivals, "TURN_S", 0)
    one, other = rivals.race([("made_up", {}), ("made_up", {})], num_rounds=2, threads=1, warm_up=2)
    assert one.results == other.results == [0, 1, 2, 3, 4, 5] and len(one.rounds) == 2
    assert one._process.returncode == other._process.returncode == 0


def test_a_name_that_is_none_is_refused_with_those_there_are():
    assert rivals.some_of(["a", "b"])("b,a") == ["b", "a"]
    with pytest.raises(argparse.ArgumentTypeError, match="^c, d: choose from a, b$"):
        rivals.some_of(["a", "b"])("a,d,c")


def test_a_child_that_fails_gives_its_error(start, monkeypatch):
    monkeypatch.setattr(rivals, "TURN_S", 0)
    child = start()
    child.warm_up()
    with pytest.raises(ChildFailed, match="ZeroDivisionError: division by zero"):
        child.take_turn(at_least=9)


def test_a_child_that_cannot_begin_gives_the_end_of_its_log(start):
    with pytest.raises(ChildFailed, match="exit code 1\n(.|\n)*No module named bench.absent"):
        start(module="absent").warm_up()


def test_spread_and_median_are_over_all_rounds():
    assert rivals.median([[1, 2], [3, 4, 5]]) == 3
    assert rivals.spread([[1, 2], [3, 4, 5]]) == pytest.approx(2 / 3)


def test_batches_are_the_same_for_all_rivals_and_labels_are_the_next_tokens():
    size = SIZES["tiny"]
    ids, labels = batch(size, 1)
    assert ids.shape == labels.shape == (size.num_sequences, size.seq_len) and ids.dtype == np.int32
    np.testing.assert_array_equal(ids[:, 1:], labels[:, :-1])
    np.testing.assert_array_equal(batch(size, 1 + NUM_BATCHES)[0], ids)
    assert (batch(size, 2)[0] != ids).any()


def test_the_recipe_asks_for_the_optimizer_that_torch_is_given():
    recipe = recipe_of(SIZES["small"], 2, "bfloat16", "graph")
    assert recipe.sequences_per_step == 8 and recipe.train.clip_norm == 1.0
    assert (recipe.train.compute_dtype, recipe.runtime.cpu_kernels, recipe.runtime.threads) == ("bfloat16", "graph", 2)
    optim = recipe.optim
    assert (optim.peak_lr, optim.beta1, optim.beta2, optim.eps, optim.weight_decay) == (3e-4, 0.9, 0.999, 1e-8, 0.1)


def test_the_tools_come_first_on_a_childs_path_before_what_the_caller_gives():
    path = rivals.environment(PYTHONPATH="toolkit")["PYTHONPATH"].split(os.pathsep)
    assert path == [str(rivals.TOOLS), str(rivals.TOOLS.parent), "toolkit"]
