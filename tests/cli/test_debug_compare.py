"""mindmodel debug trace and debug compare; what computes is replaced, except in one test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from made_traces import changed, made_trace
from mindmodel.cli.debug import trace as trace_verb
from mindmodel.cli.main import main
from mindmodel.debug.traces import sides
from mindmodel.debug.traces.trace import read_trace, write_trace


def worse(array):
    return array * 1.1


FAULTY = changed(made_trace(loss=2.75), "activation", "layers.1.mlp.swiglu", worse)


@pytest.fixture
def folders(path):
    """Traces: good, the same again, and a faulty one."""
    for name, trace in {"good": made_trace(), "again": made_trace(), "faulty": FAULTY}.items():
        write_trace(trace, Path(name))


@pytest.fixture
def computed(monkeypatch):
    """In place of the step: notes what it is given."""
    seen = {}

    def compute(recipe, inputs, source, terminal):
        seen.update(recipe=recipe, inputs=inputs, source=source)
        return made_trace(source=source)

    monkeypatch.setattr(trace_verb, "_trace", compute)
    return seen


def test_a_trace_is_written_to_the_run_s_folder_and_told(path, computed, capsys):
    assert main(["debug", "trace", path, "train.seed=3"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "loss        2.500000, gradient norm 0.500000, float32",
        "arrays      activation 21, activation_grad 20, weight_grad 7, weight 7",
        "wrote       runs/demo/trace",
    ]
    assert computed["recipe"].train.seed == 3 and computed["inputs"].batch.ids.shape == (2, 4)
    assert read_trace(Path("runs/demo/trace")).source == "demo.yaml train.seed=3"


def test_a_trace_is_told_as_one_object(path, computed, capsys):
    assert main(["debug", "trace", path, "--json", "--out", "here"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["loss"] == 2.5 and told["activation_grad"] == 20 and told["folder"] == "here"


def test_a_loss_that_is_no_number_is_text_in_json(path, monkeypatch, capsys):
    monkeypatch.setattr(trace_verb, "_trace", lambda *given: made_trace(loss=float("nan")))
    assert main(["debug", "trace", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == "nan"


def test_a_folder_that_is_no_trace_is_not_replaced(path, computed, capsys):
    Path("thesis").mkdir()
    assert main(["debug", "trace", path, "--out", "thesis"]) == 2
    assert "TraceError: thesis: exists and is no trace" in capsys.readouterr().err and not computed


def test_the_tokens_of_a_step_need_a_corpus(path, computed, capsys):
    assert main(["debug", "trace", path, "--step", "3"]) == 2
    assert "runs/demo/data: there is no corpus, so the tokens of step 3 are not known" in capsys.readouterr().err


def test_traces_that_are_equal_are_said_to_be(folders, capsys):
    assert main(["debug", "compare", "good", "again"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "equal       at every place, in every number"


def test_traces_that_agree_are_a_line_a_layer(folders, capsys):
    write_trace(changed(made_trace(), "activation", "norm", lambda array: array * np.float32(1 + 1e-6)), Path("near"))
    assert main(["debug", "compare", "good", "near"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "A           made: float32, loss 2.500000, gradient norm 0.500000"
    assert said[-1] == "agree       rounding of float32 explains every difference"
    names = [line.split()[0] for line in said[4:-1]]
    assert names == ["embedding", "layers.0", "layers.1", "norm", "logits", "loss", "head", "grad_norm"]
    assert "!" not in "".join(said[4:])


def test_where_they_part_is_named_and_that_layer_shown_place_by_place(folders, capsys):
    assert main(["debug", "compare", "good", "faulty"]) == 1
    said = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in said[4:-1]}
    assert "layers.0" in rows and "layers.0.mlp.swiglu" not in rows
    assert rows["layers.1.mlp.swiglu"].count("!") == 1 and "!" not in rows["layers.1.mlp.gate_up"]
    assert said[-1].startswith("part at     layers.1.mlp.swiglu, activation: typical relative difference 9.1e-02, ")
    assert said[-1].endswith("its inputs and rounding explain 4.0e-06")


def test_all_places_can_be_asked_for(folders, capsys):
    assert main(["debug", "compare", "good", "again", "--all"]) == 0
    assert "layers.0.mlp.swiglu  " in capsys.readouterr().out


def test_a_comparison_is_told_as_one_object(folders, capsys):
    assert main(["debug", "compare", "good", "faulty", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["first"]["place"] == "layers.1.mlp.swiglu" and told["first"]["beyond"] is True
    assert told["b"]["loss"] == 2.75 and told["left_out"] == [] and len(told["differences"]) == 57


def test_what_is_infinitely_far_is_text_in_json(folders, capsys):
    write_trace(changed(made_trace(), "activation", "norm", lambda array: array * np.nan), Path("lost"))
    assert main(["debug", "compare", "good", "lost", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["first"]["largest"] == "inf"


def test_places_that_only_one_has_are_told(folders, capsys):
    trace = made_trace()
    write_trace(type(trace)(**{**vars(trace), "tensors": {**trace.tensors, "activation_grad": {}}}), Path("half"))
    assert main(["debug", "compare", "good", "half"]) == 0
    assert "left out    20 arrays that only one side has: activation_grad/embedding, " in capsys.readouterr().out


@pytest.fixture
def children(monkeypatch):
    """In place of the processes that compute: notes their arguments; gives a good trace, then a faulty one."""
    started, results = [], [made_trace(), FAULTY]

    def run_command(*arguments):
        started.append(arguments)
        write_trace(results[len(started) - 1], Path(arguments[arguments.index("--out") + 1]))

    monkeypatch.setattr(sides, "run_command", run_command)
    return started


def test_each_recipe_is_computed_in_a_process_with_the_keys_of_both_and_its_own(path, children, capsys):
    other = f"{path}:runtime.cpu_kernels=graph,train.compute_dtype=bfloat16"
    assert main(["debug", "compare", path, other, "train.seed=3", "--single", "--step", "2"]) == 1
    assert children[0][:6] == ("debug", "trace", path, "train.seed=3", "--single", "--step")
    own = ("runtime.cpu_kernels=graph", "train.compute_dtype=bfloat16")
    assert children[1][2:6] == (path, "train.seed=3", *own)
    assert f"B           {other}: float32, loss 2.75" in capsys.readouterr().out


def test_a_recipe_and_a_trace_can_be_compared(folders, children, path):
    assert main(["debug", "compare", "again", path]) == 0
    assert len(children) == 1


@pytest.mark.parametrize("text, keys", [
    ("a.yaml", []), ("a.yaml:train.seed=1", ["train.seed=1"]), ("disk:a.yaml", None),
    ("a.yaml:data.source=[x,y],parallel.stages=[1,1]", ["data.source=[x,y]", "parallel.stages=[1,1]"]),
])
def test_settings_stand_behind_a_colon_with_commas_between_them(text, keys):
    assert sides.split_settings(text) == ((text, []) if keys is None else ("a.yaml", keys))


def test_a_side_that_is_nothing_is_refused(path, capsys):
    assert main(["debug", "compare", path, "nowhere"]) == 2
    assert "TraceError: nowhere: neither a recipe nor a trace. A side" in capsys.readouterr().err


def test_faults_of_a_recipe_are_told_before_anything_is_computed(path, children, capsys):
    assert main(["debug", "compare", path, f"{path}:train.sed=3"]) == 2
    assert "RecipeError: command line, train.sed: unknown key" in capsys.readouterr().err and not children


def test_models_of_other_shapes_are_refused_before_anything_is_computed(path, children, capsys):
    assert main(["debug", "compare", path, f"{path}:model.num_layers=3"]) == 2
    assert "other shapes cannot be compared: num_layers is 2 and 3." in capsys.readouterr().err and not children


def test_two_sides_that_both_follow_are_refused(path, monkeypatch, capsys):
    class Follower(sides.TraceFolder):
        follows = True

    monkeypatch.setattr(sides, "side_of", lambda text, common: Follower(text))
    assert main(["debug", "compare", "one", "other"]) == 2
    assert "one, other: neither says which tokens to compute. Give a recipe beside one." in capsys.readouterr().err


def test_a_side_that_follows_is_computed_from_the_other(path, monkeypatch, folders):
    class Follower(sides.Side):
        follows = True

        def trace(self, other, terminal):
            return other

    of = {"follower": Follower("follower"), "good": sides.TraceFolder("good")}
    monkeypatch.setattr(sides, "side_of", lambda text, common: of[text])
    assert main(["debug", "compare", "follower", "good"]) == 0
    assert main(["debug", "compare", "good", "follower"]) == 0


def test_what_a_process_refuses_is_told(path, capsys):
    assert main(["debug", "compare", path, path, "--step", "3"]) == 2
    assert "TraceError: runs/demo/data: there is no corpus" in capsys.readouterr().err


def test_a_process_that_fails_is_told_with_its_last_line(monkeypatch, path, capsys):
    def run(*args, **keys):
        return sides.subprocess.CompletedProcess(args, 1, "", "Traceback\nRuntimeError: out of memory\n")

    monkeypatch.setattr(sides.subprocess, "run", run)
    assert main(["debug", "compare", path, path]) == 3
    assert f"`mindmodel debug trace {path} --out" in (said := capsys.readouterr().err)
    assert "failed with exit code 1: RuntimeError: out of memory" in said


def test_the_first_place_of_another_rope_base_is_the_first_attention(command):
    done = command("debug", "compare", "recipe.yaml", "recipe.yaml:model.rope_theta=100.0", "--json")
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)
    assert told["first"]["place"] == "layers.0.attention.causal_attention"
    before = [row["largest"] for row in told["differences"][:3]]
    assert before == [0, 0, 0]
    assert sorted(path.name for path in command.folder.iterdir()) == ["corpus", "recipe.yaml"]
