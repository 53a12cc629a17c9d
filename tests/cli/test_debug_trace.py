"""mindmodel debug trace: the tokens of another trace, and msprobe's files; what computes is replaced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from made_traces import made_trace
from mindmodel.cli.debug import trace as trace_verb
from mindmodel.cli.main import main
from mindmodel.debug.traces.msprobe import find_dump, read_dump
from mindmodel.debug.traces.trace import write_trace


@pytest.fixture(autouse=True)
def computed(path, monkeypatch):
    """In place of the step: notes what it is given."""
    seen = {}

    def compute(recipe, inputs, source, terminal):
        seen.update(inputs=inputs)
        return made_trace(source=source)

    monkeypatch.setattr(trace_verb, "_trace", compute)
    return seen


def test_tokens_can_be_those_of_another_trace(computed):
    write_trace(made_trace(), Path("other"))
    assert main(["debug", "trace", "demo.yaml", "--like", "other", "--out", "trace"]) == 0
    np.testing.assert_array_equal(computed["inputs"].batch.ids, made_trace().batch.ids)
    assert computed["inputs"].lr == 0.125  # the recipe's


def test_a_trace_to_be_like_that_is_none_is_refused(computed, capsys):
    assert main(["debug", "trace", "demo.yaml", "--like", "nowhere"]) == 2
    assert "TraceError: nowhere/trace.json: there is no such file." in capsys.readouterr().err and not computed


def test_it_is_written_as_a_dump_of_msprobe(capsys):
    assert main(["debug", "trace", "demo.yaml", "--format", "msprobe", "--out", "dump"]) == 0
    assert "wrote       dump" in capsys.readouterr().out
    assert read_dump(find_dump(Path("dump"))).loss == pytest.approx(made_trace().loss)


def test_what_is_no_dump_is_not_replaced_by_one(computed, capsys):
    write_trace(made_trace(), Path("trace"))
    assert main(["debug", "trace", "demo.yaml", "--format", "msprobe", "--out", "trace"]) == 2
    assert "TraceError: trace: exists and is no dump of msprobe's layout." in capsys.readouterr().err and not computed
