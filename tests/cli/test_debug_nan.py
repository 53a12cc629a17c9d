"""mindmodel debug nan: on runs that were trained, and with faults that were planted."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from mindmodel.checkpoint.load import open_checkpoint
from mindmodel.checkpoint.save import save_checkpoint
from mindmodel.cli.debug import nan
from mindmodel.cli.main import main
from mindmodel.debug.nan.in_run import Report
from mindmodel.debug.nan.in_step import Finding, Operand
from mindmodel.debug.nan.values import Range

FINDING = Finding(
    tensor="result of Exp in layers.3.mlp", place="layers.3.mlp", operator="Exp", phase="forward", where="mlp.py:7",
    range=Range(type="float32[8, 4]", low=0.0, high=2.5, num_bad=1200, first_bad=(3, 1), bad="inf"),
    inputs=(Operand(name="result of Mul in layers.3.mlp", range=Range(type="float32[8, 4]", low=-2.0, high=99.0)),),
    sequence=2, token=5,
)
REPORT = Report(
    run="run", step=42, start=41, loss=float("nan"), grad_norm=float("inf"), first_sample=164, finding=FINDING
)


@pytest.fixture
def printed(monkeypatch, capsys):
    """Function: exit code, and what the command prints of a report."""

    def command(report, *arguments):
        monkeypatch.setattr(nan, "find_nan", lambda path, step, terminal: report)
        return main(["debug", "nan", "run", *arguments]), capsys.readouterr().out

    return command


def test_the_report_names_step_tensor_operator_sample_and_inputs(printed):
    code, said = printed(REPORT, "--step", "50")
    assert code == 1 and said.splitlines() == [
        "step        42: loss nan, gradient norm inf",
        "            the run's step 50 comes after it",
        "not finite  result of Exp in layers.3.mlp, in the forward pass",
        "operator    Exp, mlp.py:7",
        "values      float32[8, 4] 0 to 2.5, 1,200 not finite, the first inf at [3, 1]",
        "sample      sequence 2 of the batch, 166 in the run's order, token 5",
        "inputs      all finite:",
        "  result of Mul in layers.3.mlp: float32[8, 4] -2 to 99",
    ]


def test_a_weight_of_the_checkpoint_points_to_the_steps_before(printed):
    finding = Finding(
        tensor="norm.weight", place="norm", operator="", phase="read",
        range=Range(type="float32[3]", low=None, high=None, num_bad=3, first_bad=(0,), bad="nan"),
    )
    report = Report(run="run", step=42, start=40, loss=2.0, grad_norm=1.0, first_sample=0, finding=finding)
    assert printed(report)[1].splitlines()[1:] == [
        "not finite  norm.weight, before the step",
        "values      float32[3], 3 not finite, the first nan at [0]",
        "            so in the checkpoint of step 40 already: look into --step 40",
    ]


def test_a_step_whose_operators_are_finite_one_by_one_says_so(printed):
    report = Report(run="run", step=2, start=1, loss=float("inf"), grad_norm=1.0, first_sample=0, finding=None)
    code, said = printed(report)
    assert code == 1 and "computed one by one, all operators of the step give finite numbers" in said


def test_json_has_no_number_that_is_none(printed):
    found = json.loads(printed(REPORT, "--json")[1])
    assert (found["loss"], found["grad_norm"], found["step"]) == (None, None, 42)
    assert found["finding"]["inputs"][0]["range"]["high"] == 99.0


def test_a_clean_run_is_all_finite_and_is_left_as_it_was(finished):
    before = finished.run("run").content()
    done = finished("debug", "nan", "run", "--step", "27")
    assert done.returncode == 0, done.stderr
    assert "weights: run/checkpoints/step_25" in done.stdout
    assert done.stdout.endswith("all finite: weights, optimizer, loss, gradients\n")
    assert finished.run("run").content() == before


@pytest.mark.parametrize("arguments, message", [
    (("run", "--step", "201"), "run: step 201 is beyond the run: it has 200 steps."),
    (("nowhere",), "nowhere: there is no such folder."),
    (("run/checkpoints/step_25",), "this is a checkpoint, not a run. Its run is"),
])
def test_what_is_no_run_and_no_step_of_one_is_refused(finished, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(finished.folder)
    assert main(["debug", "nan", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_run_whose_corpus_is_gone_is_refused(finished, tmp_path, capsys):
    run = finished.copy("run", tmp_path / "copy")
    for path in (run.path / "data").iterdir():
        path.unlink()
    assert main(["debug", "nan", str(run.path)]) == 2
    assert "so the folder holds no whole corpus" in capsys.readouterr().err


def test_an_infinite_weight_of_a_checkpoint_is_named(finished, tmp_path):
    run, name = finished.copy("run", tmp_path / "copy"), "layers.0.mlp.down.weight"
    checkpoint = open_checkpoint(run.checkpoint(25))
    weights, index = {key: np.array(array) for key, array in checkpoint.weights().items()}, checkpoint.index
    weights[name][3, 5] = np.inf
    save_checkpoint(
        run.path / "checkpoints", step=25, samples=index.samples, tokens=index.tokens, weights=weights,
        optimizer={key: np.array(array) for key, array in checkpoint.optimizer().items()}, recipe=index.recipe,
        versions=index.versions, random=index.random, layout=index.layout, keep=9, keep_every=0,
    )
    done = finished("debug", "nan", run.path, "--step", "26")
    assert done.returncode == 1, done.stderr
    assert f"not finite  {name}, before the step" in done.stdout
    assert "1 not finite, the first inf at [3, 5]" in done.stdout


@pytest.mark.parametrize("keys", [(), ("train.check_finite=none", "train.compute_dtype=bfloat16")])
def test_a_run_that_diverges_names_its_step_and_the_operator(command, keys):
    diverging = "optim.peak_lr=50", "optim.warmup_steps=2", "model.num_layers=2", "train.steps=40"
    trained = command.train("run", *diverging, *keys)
    assert trained.returncode == (0 if keys else 3)
    first = next(row["step"] for row in command.run("run").rows if "loss" in row and row["grad_norm"] is None)
    done = command("debug", "nan", "run")
    assert done.returncode == 1, done.stderr
    assert f"step        {first}: " in done.stdout and "not finite  result of " in done.stdout
    assert "operator    " in done.stdout and "inputs      all finite:" in done.stdout
    assert "mindmodel/layers/" in done.stdout


PLANTED = """
import sys
from mindmodel.parallel.environment import prepare_environment
from mindmodel.recipe.schema import RuntimeSection
prepare_environment(RuntimeSection(threads=1))
from mindspore import nn, ops
from mindmodel.cli.main import main
from mindmodel.models.decoder import Decoder
from mindmodel.train import build

class Exploding(nn.Cell):
    def __init__(self, cell):
        super().__init__(auto_prefix=False)
        self.cell = cell
    def construct(self, x):
        y = self.cell(x)
        return y + 1e-30 * ops.exp(y * 50.0)

class Planted(Decoder):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.layers[1].mlp.swiglu = Exploding(self.layers[1].mlp.swiglu)

build.Decoder = Planted
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.long
def test_an_exponential_that_overflows_in_a_layer_is_named_with_its_line(command):
    script = command.folder / "planted.py"
    script.write_text(PLANTED)

    def run(*arguments):
        return subprocess.run(
            [sys.executable, script, *arguments], cwd=command.folder, env=command.env, capture_output=True, text=True
        )

    trained = run("train", "recipe.yaml", "runtime.output=run", "model.num_layers=2")
    assert trained.returncode == 3, trained.stdout + trained.stderr
    done = run("debug", "nan", "run")
    assert done.returncode == 1, done.stderr
    assert "not finite  result of Exp in layers.1.mlp.swiglu, in the forward pass" in done.stdout
    assert "operator    Exp, planted.py:" in done.stdout and "inf at [" in done.stdout
    assert "the batch, " in done.stdout and "inputs      all finite:" in done.stdout
