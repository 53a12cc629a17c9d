"""A run is one folder with one writer; what is not a run is said to be what it is."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from crew import save_alone
from mindmodel.checkpoint.run_folder import RunFolder, open_run, resolve_weights
from mindmodel.errors import CheckpointError
from mindmodel.parallel.heartbeat import host_name


def make_run(path, steps=()):
    run = RunFolder(path)
    run.create()
    run.recipe_file.write_text("name: tiny\n")
    for step in steps:
        save_alone(run.checkpoints, step, {"w": np.full(2, step, np.float32)})
    return run


def test_the_places_in_a_run(tmp_path):
    run = RunFolder(tmp_path)
    places = (run.recipe_file, run.metrics_file, run.events, run.tokenizer, run.data, run.checkpoints, run.logs)
    assert [place.name for place in (*places, run.huggingface)] == [
        "recipe.yaml",
        "metrics.jsonl",
        "events",
        "tokenizer",
        "data",
        "checkpoints",
        "logs",
        "huggingface",
    ]


def test_a_folder_is_a_run_when_it_holds_a_recipe(tmp_path):
    run = RunFolder(tmp_path / "runs" / "tiny")
    run.create()
    run.create()
    assert not run.exists()
    run.recipe_file.write_text("")
    assert run.exists() and open_run(run.path) == run


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file/run: this run folder cannot be written: Not a directory. Choose"):
        RunFolder(tmp_path / "file" / "run").create()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(CheckpointError, match="this run folder cannot be written: Is a directory"):
        RunFolder(tmp_path).create()


HOLD = """
import sys
from pathlib import Path
from pathlib import Path
from mindmodel.checkpoint.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).lock():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_is_refused_until_the_first_has_died(tmp_path):
    run = make_run(tmp_path)
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(CheckpointError, match=rf"is being written by process {holder.pid} on \S+\. Wait until it"):
            with run.lock():
                pass
        holder.kill()
    with run.lock():
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()} on {host_name()}\n"
    with run.lock():
        pass


def test_the_newest_checkpoint_of_a_run_is_taken(tmp_path):
    make_run(tmp_path, steps=(1, 20, 3))
    run, checkpoint = resolve_weights(tmp_path)
    assert run == RunFolder(tmp_path) and checkpoint.index.step == 20


def test_one_checkpoint_can_be_asked_for(tmp_path, monkeypatch):
    make_run(tmp_path, steps=(1, 2))
    run, checkpoint = resolve_weights(tmp_path / "checkpoints" / "step_1")
    assert run.path == tmp_path.resolve() and checkpoint.index.step == 1
    monkeypatch.chdir(tmp_path / "checkpoints")
    assert resolve_weights(Path("step_2"))[1].index.step == 2


def test_a_damaged_checkpoint_that_is_asked_for_is_not_passed_over(tmp_path):
    make_run(tmp_path, steps=(1, 2))
    (tmp_path / "checkpoints" / "step_2" / "index.json").unlink()
    with pytest.raises(CheckpointError, match="step_2/index.json: there is no such file"):
        resolve_weights(tmp_path / "checkpoints" / "step_2")


def test_a_damaged_checkpoint_of_a_run_is_named_on_stderr(tmp_path, capsys):
    make_run(tmp_path, steps=(1, 2))
    (tmp_path / "checkpoints" / "step_2" / "index.json").unlink()
    assert resolve_weights(tmp_path)[1].index.step == 1
    assert "step_2 is passed over" in capsys.readouterr().err


def test_a_run_without_checkpoint_says_so(tmp_path):
    make_run(tmp_path)
    with pytest.raises(CheckpointError, match="checkpoints: there is no whole checkpoint. Train the run"):
        resolve_weights(tmp_path)


def test_a_missing_folder_says_what_would_work(tmp_path):
    with pytest.raises(CheckpointError, match="none: there is no such folder. Give a run folder"):
        open_run(tmp_path / "none")


def test_a_checkpoint_in_place_of_a_run_names_its_run(tmp_path):
    make_run(tmp_path, steps=(1,))
    with pytest.raises(CheckpointError, match=f"this is a checkpoint, not a run. Its run is {tmp_path.resolve()}"):
        open_run(tmp_path / "checkpoints" / "step_1")


def test_a_hugging_face_folder_in_place_of_a_run_names_the_way(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="a Hugging Face folder, not a run. `mindmodel convert from-hf"):
        open_run(tmp_path)


def test_another_folder_in_place_of_a_run_says_what_is_there(tmp_path):
    with pytest.raises(CheckpointError, match="holds no recipe.yaml, so it is no run; found nothing"):
        open_run(tmp_path)
    for number in range(10):
        (tmp_path / f"file{number}").write_text("")
    with pytest.raises(CheckpointError, match="found file0, file1, .*, file7, .... Give a run folder"):
        open_run(tmp_path)
