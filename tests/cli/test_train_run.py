"""What a training run prints, leaves behind, and does when it fails on the way."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from command import in_terminal
from mindmodel.checkpoint.load import open_checkpoint


def test_only_the_run_folder_appears_where_the_command_is_typed(finished):
    names = {path.name for path in finished.folder.iterdir() if not path.name.endswith(".log")}
    of_other_tests = {"interrupted", "my run", "hf", "imported run"}
    assert names - of_other_tests == {"corpus", "recipe.yaml", "run"}
    parts = {path.name for path in (finished.folder / "run").iterdir()}
    assert parts == {".lock", "recipe.yaml", "metrics.jsonl", "events", "tokenizer", "data", "checkpoints"}


def test_without_a_terminal_plain_lines_are_printed(finished):
    assert "\x1b" not in finished.printed and "\r" not in finished.printed
    lines = finished.printed.splitlines()
    assert {"run folder: run", "compiling the training graph ..."} <= set(lines)
    assert "step 25: saved run/checkpoints/step_25" in lines
    assert any(line.startswith("200/200 loss ") for line in lines)


def test_the_end_shows_the_heldout_loss_a_sample_and_what_to_do_next(finished):
    assert re.search(r"held-out loss \d\.\d{4} nats a token, perplexity ", finished.printed)
    assert "unigram entropy of the same tokens" in finished.printed and "\nsample:\ndef" in finished.printed
    assert finished.printed.endswith(
        'next:\n  mindmodel generate run --prompt "def"\n  mindmodel eval run\n  mindmodel convert to-hf run run-hf\n'
    )


def test_it_learns(finished):
    losses = finished.run("run").losses
    assert losses[1][0] > 5.5 and losses[200][0] < 3.0


def test_the_newest_checkpoints_are_kept(finished):
    assert finished.run("run").steps == [25, 50, 75, 100, 125, 150, 175, 200]


def test_a_finished_run_says_so_at_once_and_changes_nothing(finished):
    before = finished.run("run").content()
    done = finished.train("run", timeout_s=20)
    assert done.returncode == 0 and done.stdout.startswith("run: finished, 200 steps. train.steps=400 would go on.\n")
    assert "MindSpore" not in done.stdout
    assert finished.run("run").content() == before


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_its_checkpoints(command):
    told = command.refused(
        "train", "recipe.yaml", "runtime.output=run", "optim.peak_lr=1e30", "checkpoint.every=0", code=3
    )
    step = int(re.search(r"NotFiniteError: step (\d+): loss .*, gradient norm .*: not finite", told)[1])
    assert "The weights were not touched. Use a smaller optim.peak_lr, or train.check_finite=skip" in told
    assert "`mindmodel debug nan run` names the first tensor that is not finite." in told
    run = command.run("run")
    assert run.steps[-1] == step - 1 and run.hidden() == []
    for saved in run.steps:
        open_checkpoint(run.checkpoint(saved))
    (row,) = [row for row in run.rows if row.get("step") == step]
    assert row["grad_norm"] is None and row["lr"] > 0


@pytest.mark.long
def test_steps_that_are_not_finite_can_be_passed_over(command):
    done = command.train("run", "optim.peak_lr=1e30", "train.check_finite=skip", "train.steps=6")
    assert done.returncode == 0, done.stderr
    assert "not finite; the weights stay as they were." in done.stdout
    rows = [row for row in command.run("run").rows if "loss" in row]
    assert len(rows) == 6 and rows[-1]["grad_norm"] is None


def test_norms_are_rows_of_their_own_and_no_loss_has_another_bit(command, finished):
    """Those of weights and updates are the checkpoints'; those of gradients make up the whole gradient's."""
    keys = "log.norms_every=2", "train.stop_at=6", "checkpoint.every=1"
    done = command.train("run", *keys)
    assert done.returncode == 0, done.stderr
    run, whole = command.run("run"), finished.run("run")
    assert run.losses == {step: whole.losses[step] for step in range(1, 7)}
    rows = {row["step"]: row for row in run.rows if "norms/norm/grad" in row}
    assert list(rows) == [2, 4, 6]
    new, old = (dict(open_checkpoint(run.checkpoint(step)).weights()) for step in (6, 5))
    for part in ("embedding", "layers.0", "norm", "head"):
        held = [name for name in new if name.startswith(f"{part}.")]
        weight = np.sqrt(sum(np.square(new[name], dtype=float).sum() for name in held))
        update = np.sqrt(sum(np.square(new[name].astype(float) - old[name]).sum() for name in held))
        assert rows[6][f"norms/{part}/weight"] == pytest.approx(weight, rel=1e-6)
        assert rows[6][f"norms/{part}/update"] == pytest.approx(update, rel=1e-5)
    grads = [value for name, value in rows[6].items() if name.endswith("/grad")]
    assert np.linalg.norm(grads) == pytest.approx(run.losses[6][1], rel=1e-6)
    assert [name for name in rows[6] if name.endswith("/activation")] == [
        "norms/embedding/activation", "norms/layers.0/activation", "norms/norm/activation"
    ]


def test_a_full_disk_ends_the_run_with_the_last_checkpoint_intact(command, finished, small_disk):
    disk = small_disk(700)  # room for one checkpoint
    told = command.refused("train", "recipe.yaml", f"runtime.output={disk}/run")
    found = re.search(r"step_50: the checkpoint could not be written: No space left on device. It needs ([\d,]+)", told)
    assert found and int(found[1].replace(",", "")) > 300_000
    assert re.search(r"[\d,]+ are free. Earlier checkpoints are untouched; make room or choose another", told)
    run = command.run(f"{disk}/run")
    assert run.steps == [25] and run.hidden() == []
    open_checkpoint(run.checkpoint(25))
    assert run.tensors(25) == finished.run("run").tensors(25)


def test_output_that_nobody_reads_does_not_stop_the_work(finished):
    command = [sys.executable, "-m", "mindmodel", "train", "recipe.yaml", "runtime.output=run"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=finished.folder, env=finished.env, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")


def test_ctrl_c_while_text_is_read_leaves_nothing(command):
    running = command.start("train", "recipe.yaml", "data.source=stdlib", "runtime.output=runs/new")
    running.wait_for("reading text")
    assert running.end(signal.SIGINT, timeout_s=10) == 130
    assert "interrupted: nothing was saved" in running.output and "Traceback" not in running.output
    assert not (command.folder / "runs").exists()


@pytest.fixture(scope="module")
def longer(finished):
    """The finished run continued to 240 steps on a terminal of 60 columns: its folder, and the lines shown."""
    run = finished.copy("run", finished.folder / "my run")
    arguments = [sys.executable, "-m", "mindmodel", "train", "recipe.yaml", "runtime.output=my run", "train.steps=240"]
    env = {name: value for name, value in finished.env.items() if name not in ("COLUMNS", "LINES")}
    code, output = in_terminal(arguments, 60, cwd=finished.folder, env=env)
    assert code == 0 and "\x1b" not in output.replace("\x1b[K", "")
    return run, [line for line in re.split(r"\r\x1b\[K|\r\n|\r", output) if line]


def test_more_steps_go_on_and_the_change_is_printed_and_recorded(finished, longer):
    run, shown = longer
    assert "changed since: train.steps: 200 -> 240" in shown and "  mindmodel eval 'my run'" in shown
    last = [row for row in run.rows if "from_step" in row][-1]
    assert (last["from_step"], last["changes"]) == (200, ["train.steps: 200 -> 240"])
    before = finished.run("run").losses
    assert len(run.losses) == run.steps[-1] == 240 and before.items() <= run.losses.items()
    assert "steps: 240" in (run.path / "recipe.yaml").read_text()


def test_on_a_terminal_every_line_fits(longer):
    assert max(map(len, longer[1])) <= 60


def test_on_a_terminal_a_line_moves_while_mindspore_holds_pythons_lock(longer):
    texts = "loading MindSpore|building the CPU kernels, once|compiling the training graph"
    moving = [line for line in longer[1] if re.fullmatch(rf"[|/\\-] ({texts})  \d+ s", line)]
    assert len(moving) > 3


def test_on_a_terminal_a_bar_fills(longer):
    assert any(re.match(r"\[#+\] 240/240 loss \d", line) for line in longer[1])
