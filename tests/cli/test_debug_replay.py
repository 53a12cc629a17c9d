"""mindmodel debug replay: the same bits, a difference and where it began, and what cannot be compared."""

from __future__ import annotations

import json

import pytest

from command import Session
from mindmodel.cli.main import main


def rewritten(run, change) -> None:
    """Let the rows of a run's metrics.jsonl be what `change` makes of them."""
    rows = [change(row) for row in run.rows]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows if row is not None))


def test_steps_from_a_checkpoint_are_the_same_bit_for_bit_and_the_run_is_only_read(finished):
    before = finished.run("run").content()
    done = finished("debug", "replay", "run", "--from", 52, "--to", 54)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "weights: run/checkpoints/step_50" in done.stdout and "step 51: loss " in done.stdout
    assert "4 steps are the same bit for bit" in done.stdout
    assert finished.run("run").content() == before


def test_from_the_beginning_in_pynative_mode_the_first_differing_step_is_named(finished, tmp_path):
    run = finished.copy("run", tmp_path / "copy")
    was = run.losses[2][0]
    rewritten(run, lambda row: {**row, "loss": was * (1 + 1e-6)} if row.get("step") == 2 and "loss" in row else row)
    done = finished("debug", "replay", run.path, "runtime.mode=pynative", "--from", 0, "--to", 3)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "weights: fresh" in done.stdout and "one by one from Python" in done.stdout
    assert f"step 2: loss {was:.9g}" in done.stdout and "(1.0e-06 of it)" in done.stdout
    assert done.stdout.endswith("1 of 3 steps differ, the first is step 2\n")


def test_the_debugger_opens_in_the_steps_after_the_first_that_is_asked_for(finished):
    arguments = ("-m", "mindmodel", "debug", "replay", "run", "--from", 26, "--to", 28, "--break", "layers.0.mlp")
    session = Session(finished, arguments, ["p 'rows', x.shape", "q"])
    assert session.output.count("step 26: loss") == 1 and "('rows', (128, 32))" in session.output
    assert session.code == 130 and "left in step 27" in session.output


@pytest.fixture
def refused(finished, monkeypatch, capsys):
    """The message of a replay that cannot be; MindSpore is not loaded for it."""

    def message(run, *arguments) -> str:
        monkeypatch.chdir(finished.folder)
        assert main(["debug", "replay", str(run), *map(str, arguments)]) == 2
        return capsys.readouterr().err

    return message


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--from", 200, "--to", 201), "run: has made 200 steps; --to 201 is beyond. Use up to 200."),
        (("--from", 201, "--to", 202), "run: has made 200 of 200 steps; step 201 is beyond."),
        (("--from", 9, "--to", 9), "--from 9 --to 9: no step is between them. Use a larger --to."),
        (("--from", 9, "--to", 10, "train.seed=7"), "train.seed: 1 -> 7: a step of another run."),
        (("--from", 9, "--to", 10, "train.sed=7"), "command line, train.sed: unknown key. Did you mean 'train.seed'?"),
    ],
)
def test_what_the_run_has_not_made_is_refused(refused, arguments, message):
    assert message in refused("run", *arguments)


def test_steps_of_which_nothing_was_written_down_are_not_compared(refused, finished, tmp_path):
    run = finished.copy("run", tmp_path / "copy")
    rewritten(run, lambda row: row if row.get("step", 0) % 10 == 0 else None)
    message = refused(run.path, "--from", 100, "--to", 109)
    assert "metrics.jsonl: tells of no step from 101 to 109, so there is nothing to compare" in message


def test_steps_of_two_recipes_are_not_replayed_at_once(refused, finished, tmp_path):
    run = finished.copy("run", tmp_path / "copy")
    rows = [*run.rows, {"from_step": 100, "changes": ["optim.eps: 1e-8 -> 1e-6"]}]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = refused(run.path, "--from", 98, "--to", 101)
    assert "from step 100 on the run had another recipe; --to 101 is beyond. Replay to 100, or from 100 on." in message


def test_a_corpus_that_is_gone_is_refused(refused, finished, tmp_path):
    run = finished.copy("run", tmp_path / "copy")
    (run.path / "data" / "corpus.json").unlink()
    assert "corpus.json: is missing, so the folder holds no whole corpus" in refused(run.path, "--from", 9, "--to", 10)
