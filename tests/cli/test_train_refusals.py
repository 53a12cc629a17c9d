"""What cannot be trained is refused in one message with exit code 2, and nothing is written or damaged."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

from mindmodel.parallel.heartbeat import host_name


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["data.source=nowhere.txt"], "nowhere.txt: there is no such file or folder"),
        (["data.source=empty.txt"], "no text in empty.txt"),
        (["train.stepz=3"], "train.stepz: unknown key. Did you mean 'train.steps'?"),
        (["train.steps=many"], "train.steps: 'many' does not fit. Use a whole number"),
        (["model.vocab_size=299"], "'vocab_size=299' is smaller than 'data.tokenizer_vocab_size=300'"),
        (["model.num_heads=3", "model.num_kv_heads=3"], "does not divide 'hidden_size=32'"),
        (["train.tokens_per_step=100"], "is not a multiple of 'seq_len=32'"),
        (["parallel.tp=2"], "cannot be 1 devices.*`--single` runs it on one device"),
        (["train.init_from=nowhere"], "nowhere: there is no such folder"),
        (["model.hidden_size=4000000", "model.vocab_size=300"], "gradients, moments and .* TiB; this machine has"),
        (["train.tokens_per_step=2147483648", "model.vocab_size=300"], "logits of a micro-batch are .* TiB; this"),
    ],
)
def test_a_recipe_that_cannot_be(overrides, message, command):
    (command.folder / "empty.txt").write_text("\n")
    before = command.run(".").content()
    told = command.refused("train", "recipe.yaml", "runtime.output=runs/new", *overrides)
    assert re.search(message, told, re.DOTALL), told
    made = set(command.run(".").content()) - set(before)
    assert "init_from" in overrides[0] or not made


def test_a_recipe_that_is_not_there(command):
    assert "missing.yaml" in command.refused("train", "missing.yaml")


def test_a_corpus_without_one_whole_sequence(command):
    (command.folder / "short.txt").write_text("the red dog")
    told = command.refused(
        "train", "recipe.yaml", "runtime.output=run", "data.source=short.txt", "data.heldout=0", "data.seq_len=128"
    )
    assert "one sequence of 128 tokens and its labels need 129 training tokens" in told
    assert not command.run("run").path.joinpath("recipe.yaml").exists()


def test_a_vocabulary_smaller_than_that_of_a_tokenizer_which_exists(command, finished):
    tokenizer = finished.folder / "run" / "tokenizer"
    told = command.refused("train", "recipe.yaml", f"data.tokenizer={tokenizer}", "model.vocab_size=299")
    assert "model.vocab_size: 299 is smaller than the tokenizer's 300 tokens. Use 300 or more" in told


@pytest.mark.parametrize("output", ["file/run", "/proc/run"])
def test_a_folder_that_cannot_be_written(output, command):
    (command.folder / "file").write_text("")
    told = command.refused("train", "recipe.yaml", f"runtime.output={output}")
    assert f"{output}: this run folder cannot be written" in told and "Choose another runtime.output" in told


def test_a_read_only_disk(command, small_disk):
    disk = small_disk(64)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    told = command.refused("train", "recipe.yaml", f"runtime.output={disk}/run")
    assert "this run folder cannot be written: Read-only file system" in told


def test_a_run_that_another_process_writes(command):
    running = command.start("train", "recipe.yaml", "runtime.output=run", "train.steps=100000")
    running.wait_for("loading MindSpore")
    told = command.refused("train", "recipe.yaml", "runtime.output=run", "train.steps=300")
    assert f"run: is being written by process {running.process.pid} on {host_name()}. Wait until it ends, stop" in told
    assert running.process.poll() is None
    running.process.kill()
    running.process.wait()


@pytest.fixture
def copy(command, finished):
    """A copy of the finished run, to be damaged."""
    return finished.copy("run", command.folder / "run")


@pytest.mark.parametrize("overrides", [["train.seed=2"], ["model.ffn_size=96"], ["data.seq_len=16"]])
def test_a_folder_that_holds_a_run_of_another_recipe(overrides, command, copy):
    before = copy.content()
    told = command.refused("train", "recipe.yaml", "runtime.output=run", "train.steps=300", *overrides)
    key, _, value = overrides[0].partition("=")
    assert f"run: belongs to another run; model, data, tokenizer and seed must stay: {key}: " in told
    assert f" -> {value}" in told and copy.content() == before


def test_a_checkpoint_of_another_run_is_not_taken_for_one_of_this(command, copy):
    (copy.path / "recipe.yaml").unlink()
    told = command.refused("train", "recipe.yaml", "runtime.output=run", "train.steps=300", "train.seed=2")
    assert "belongs to another run" in told and "train.seed: 1 -> 2" in told


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def alter(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, alter])
@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "index.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(damage, name, command, copy):
    damage(copy.checkpoint(200) / name)
    done = command.train("run", "train.steps=175")
    assert done.returncode == 0, done.stderr
    assert f"run/checkpoints/step_200/{name}" in done.stdout and "Checkpoint step_200 is passed over." in done.stdout
    assert "run: finished, 175 steps" in done.stdout


def test_when_no_checkpoint_is_whole_the_run_does_not_begin_again(command, copy):
    for step in copy.steps:
        alter(copy.checkpoint(step) / "weights.safetensors")
    before = copy.content()
    told = command.refused("train", "recipe.yaml", "runtime.output=run", "train.steps=300")
    assert "run/checkpoints: no checkpoint is whole (step_25, step_50, " in told
    assert "Restore one of them, or delete this folder" in told
    assert copy.content() == before


def test_a_damaged_line_of_the_metrics(command, copy):
    file = copy.path / "metrics.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:6], lines[6][:20], *lines[7:]]) + "\n")
    before = copy.content()
    told = command.refused("train", "recipe.yaml", "runtime.output=run", "train.steps=300")
    assert "run/metrics.jsonl, line 7: not a row of metrics. Mend or remove the file" in told
    assert copy.content() == before


def test_a_damaged_corpus(command, copy):
    alter(copy.path / "data" / "train.bin")
    told = command.refused("train", "recipe.yaml", "runtime.output=run", "train.steps=300")
    assert "run/data/train.bin: is missing or not as it was made, by size or checksum. Delete" in told


@pytest.mark.parametrize("verb", [("generate", "{}"), ("eval", "{}"), ("convert", "to-hf", "{}", "out")])
@pytest.mark.parametrize("folder, message", [("corpus", "holds no recipe.yaml"), ("none", "no such folder")])
def test_a_folder_that_is_no_run(verb, folder, message, command):
    assert message in command.refused(*(word.format(folder) for word in verb))


def test_a_text_to_evaluate_on_that_is_not_there(finished):
    told = finished.refused("eval", "run", "--text", "nowhere.txt")
    assert "nowhere.txt: there is no such file" in told
