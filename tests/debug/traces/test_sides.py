"""Sides beside recipes and traces: a Hugging Face folder, a layout, a dump of msprobe. What computes is replaced."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest

from command import DEMO
from made_traces import made_trace
from mindmodel.convert.folder import CONFIG
from mindmodel.data.loader import Batch
from mindmodel.debug.traces import sides
from mindmodel.debug.traces.msprobe import write_dump
from mindmodel.debug.traces.sides import Common, DumpSide, HuggingFaceSide, LayoutSide, RecipeSide, TraceFolder, side_of
from mindmodel.debug.traces.trace import KINDS, read_trace, write_trace
from mindmodel.errors import TraceError
from mindmodel.terminal import Terminal


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """In the working folder: a recipe, a Hugging Face folder, a trace, and a dump."""
    monkeypatch.chdir(tmp_path)
    Path("demo.yaml").write_text(DEMO)
    Path("hf").mkdir()
    Path("hf", CONFIG).write_text("{}")
    write_trace(made_trace(), Path("trace"))
    write_dump(made_trace(loss=3.0), Path("dump"))


@pytest.fixture
def started(monkeypatch):
    """In place of the processes that compute: their arguments and the batch of --like, if it is given."""
    seen = []

    def run_command(*arguments):
        like = arguments[arguments.index("--like") + 1] if "--like" in arguments else None
        seen.append((arguments, read_trace(Path(like)).batch if like else None))
        write_trace(made_trace(), Path(arguments[arguments.index("--out") + 1]))

    monkeypatch.setattr(sides, "run_command", run_command)
    return seen


@pytest.fixture
def on_torch(monkeypatch):
    """In place of torch: what it is given."""
    seen = {}

    def trace_hugging_face(folder, inputs, dtype, recipe):
        seen.update(folder=folder, inputs=inputs, dtype=dtype, recipe=recipe)
        return made_trace()

    monkeypatch.setattr(sides, "trace_hugging_face", trace_hugging_face)
    return seen


@pytest.fixture
def executed(monkeypatch):
    """In place of the compiler and the interpreter: what they are given."""
    seen = {}

    def trace_layout(recipe, inputs, weights, progress):
        seen.update(recipe=recipe, inputs=inputs, weights=weights)
        progress(1, "rank-0")
        return made_trace(source="2 ranks")

    monkeypatch.setattr(sides, "trace_layout", trace_layout)
    return seen


def opened(*texts, **common):
    return sides.open_sides(texts, Common(**common), Terminal(io.StringIO()))


@pytest.mark.parametrize("text, kind", [
    ("trace", TraceFolder), ("dump", DumpSide), ("dump/step0/rank0/dump.json", DumpSide), ("hf", HuggingFaceSide),
    ("demo.yaml", RecipeSide), ("demo.yaml:parallel.micro_batches=2", RecipeSide),
    ("demo.yaml:parallel.tp=2", LayoutSide),
])
def test_a_side_is_recognised_by_what_it_names(text, kind):
    assert type(side_of(text, Common())) is kind


# A Hugging Face folder


@pytest.mark.parametrize("texts", [("demo.yaml", "hf"), ("hf", "demo.yaml")])
def test_a_recipe_beside_a_folder_begins_with_its_weights(started, on_torch, texts):
    opened(*texts, overrides=("train.compute_dtype=bfloat16",))
    (arguments, like), = started
    assert "train.init_from=hf" in arguments and like is None
    assert on_torch["recipe"].train.init_from == "hf" and on_torch["folder"] == Path("hf")
    np.testing.assert_array_equal(on_torch["inputs"].batch.ids, made_trace().batch.ids)
    assert (on_torch["dtype"], on_torch["inputs"].lr) == ("float32", made_trace().lr)  # the trace's


def test_weights_that_a_recipe_names_are_left_to_it(started, on_torch):
    opened("demo.yaml:train.init_from=runs/demo", "hf")
    assert not any("init_from=hf" in argument for argument in started[0][0])
    assert on_torch["recipe"].train.init_from == "runs/demo"


def test_beside_a_trace_there_is_no_recipe(on_torch):
    opened("trace", "hf")
    assert on_torch["recipe"] is None


def test_two_folders_have_no_tokens():
    with pytest.raises(TraceError, match="hf, hf: neither says which tokens to compute"):
        opened("hf", "hf")


# A layout


def test_a_layout_is_executed_with_the_tokens_of_its_recipe(started, executed):
    one, other = opened("demo.yaml", "demo.yaml:parallel.tp=2")
    assert (executed["recipe"].parallel.dp, executed["recipe"].parallel.tp, executed["weights"]) == (1, 2, None)
    assert executed["inputs"].batch.ids.shape == (2, 4) and executed["inputs"].lr == 0.125
    assert other.source == "demo.yaml:parallel.tp=2, 2 ranks"


def test_a_layout_begins_with_the_weights_of_a_folder_beside_it(executed, on_torch, monkeypatch):
    def initial_weights(recipe):
        return dataclasses.make_dataclass("Initial", ["weights"])({"of": recipe.train.init_from})

    monkeypatch.setattr(sides, "initial_weights", initial_weights)
    opened("demo.yaml:parallel.tp=2", "hf")
    assert executed["weights"] == {"of": "hf"}


def test_a_layout_computes_the_tokens_of_a_dump(executed):
    opened("demo.yaml:parallel.tp=2", "dump")
    np.testing.assert_array_equal(executed["inputs"].batch.labels, made_trace().batch.labels)
    assert executed["inputs"].lr == 0.125


# A dump of msprobe


@pytest.mark.parametrize("texts", [("demo.yaml", "dump"), ("dump", "demo.yaml")])
def test_a_recipe_beside_a_dump_computes_its_tokens(started, texts):
    traces = opened(*texts)
    (_, like), = started
    np.testing.assert_array_equal(like.ids, made_trace().batch.ids)
    np.testing.assert_array_equal(like.labels, made_trace().batch.labels)
    assert traces[texts.index("dump")].loss == pytest.approx(3.0)


@pytest.mark.parametrize("texts", [("trace", "dump"), ("dump", "trace")])
def test_a_dump_beside_a_trace_has_its_sequences(texts):
    dump = opened(*texts)[texts.index("dump")]
    assert dump.batch.ids.shape == made_trace().batch.ids.shape
    assert all(dump.tensors[kind].keys() == made_trace().tensors[kind].keys() for kind in KINDS[:3])


def test_two_dumps_are_compared_as_they_are():
    assert all(isinstance(trace.batch, Batch) and trace.batch.ids.shape == (1, 8) for trace in opened("dump", "dump"))


@pytest.mark.parametrize("texts", [("hf", "dump"), ("dump", "hf")])
def test_a_dump_beside_a_folder_is_refused(texts):
    with pytest.raises(TraceError, match="dump, hf: a dump does not say where its sequences end. Compare each with a"):
        opened(*texts)
