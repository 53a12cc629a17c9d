"""mindmodel debug step, with a person at the terminal who uses the debugger."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from command import Command, Session, fill_with_corpus
from mindmodel.cli.debug import step as verb

SCRIPT = """
import sys
from mindmodel.layers import mlp
from mindmodel.cli.main import main

inner = mlp.MLP.construct

def construct(self, x):
    breakpoint()
    return inner(self, x)

mlp.MLP.construct = construct
sys.exit(main(sys.argv[1:]))
"""
"""A user's change to a layer."""


@pytest.fixture(scope="module")
def command(tmp_path_factory, cache_of_the_tests):
    """In a folder that has the corpus and the recipe of `finished`."""
    folder = tmp_path_factory.mktemp("stepped")
    fill_with_corpus(folder)
    return Command(folder)


@pytest.fixture(scope="module")
def session(command):
    """Two steps: a look into the attention, a breakpoint of the user's own, and out of the second step."""
    (command.folder / "user.py").write_text(SCRIPT)
    arguments = ("user.py", "debug", "step", "recipe.yaml", "runtime.output=stepped", "--steps", "2", "--break")
    answers = ["p 'rows', x.shape", "w", "c", "p 'in mlp', x.dtype", "c", "q"]
    return Session(command, (*arguments, "layers.0.attention"), answers)


def test_the_debugger_stops_in_the_construct_of_the_cell_with_its_callers(session):
    assert re.search(r"> \S+attention\.py\(\d+\)construct\(\)\s+-> return self\.out\(", session.output)
    assert "('rows', (128, 32))" in session.output
    assert re.search(r"decoder\.py\(\d+\)activations\(\)", session.output)


def test_a_breakpoint_in_a_layer_stops_too(session):
    assert re.search(r"> .*user\.py\(\d+\)construct\(\)", session.output)
    assert "('in mlp', mindspore.float32)" in session.output


def test_a_step_that_goes_on_is_the_first_of_the_run(session, finished):
    loss, norm, lr = finished.run("run").losses[1]
    found = re.search(r"step 1: loss (\S+), gradient norm (\S+?),.* learning rate (\S+), 128 tokens", session.output)
    assert [float(number) for number in found.groups()] == pytest.approx([loss, norm, lr], abs=1e-5)


def test_leaving_the_debugger_is_no_failure(session):
    assert session.code == 130 and "left in step 2" in session.output and "Traceback" not in session.output


def test_nothing_is_written_but_the_corpus_where_training_will_find_it(session, command):
    names = {path.name for path in (command.folder / "stepped").iterdir()}
    assert names == {".lock", "data", "tokenizer"}


def test_a_corpus_that_is_there_is_only_read(finished):
    run = finished.run("run")
    before = run.content()
    done = finished("debug", "step", "recipe.yaml", "runtime.output=run", "--break", "layers.9.attention")
    assert done.returncode == 2 and "--break layers.9.attention: the model has no such Cell" in done.stderr
    assert run.content() == before


def stepping(one_step):
    """As much of a run in memory as a step needs."""
    train = SimpleNamespace(clip_norm=1.0, tokens_per_step=2048)
    return SimpleNamespace(step=3, recipe=SimpleNamespace(train=train), one_step=one_step)


def test_a_line_tells_what_happened_in_a_step():
    line = verb._one_step(stepping(lambda: (6.25, 2.0, 3e-4)))
    assert line.startswith("step 3: loss 6.250000, gradient norm 2.000000, clipped to 1, learning rate 0.0003, ")
    assert re.search(r", 2,048 tokens in \d+\.\d s$", line)
    assert "clipped" not in verb._one_step(stepping(lambda: (6.25, 0.5, 3e-4)))
