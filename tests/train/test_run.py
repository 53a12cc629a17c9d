"""Where a run stands, and what is refused before MindSpore is loaded. The command's tests meet the rest."""

from __future__ import annotations

import dataclasses
import errno
import io

import numpy as np
import pytest

from mindmodel.checkpoint.run_folder import RunFolder
from mindmodel.checkpoint.save import save_checkpoint
from mindmodel.errors import CheckpointError, DataError, LaunchError, LayoutError, RecipeError
from mindmodel.fleet.chips import find_chip
from mindmodel.machine import Memory
from mindmodel.recipe.dump import recipe_to_dict
from mindmodel.recipe.load import load_recipe
from mindmodel.terminal import Terminal
from mindmodel.train import run as room
from mindmodel.train.run import find_position, for_this_machine, join_position, open_run, owned, refuse_other_ranks_run

RECIPE = """
model: {hidden_size: 32, num_layers: 1, num_heads: 4, ffn_size: 64}
data: {source: SOURCE, tokenizer_vocab_size: 260, seq_len: 8, heldout: 0}
train: {steps: 3, tokens_per_step: 8}
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "text.txt").write_text("one two three four five six\n" * 9)
    (tmp_path / "small.yaml").write_text(RECIPE.replace("SOURCE", str(tmp_path / "text.txt")))
    return load_recipe(tmp_path / "small.yaml")


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "runs" / "small")


@pytest.fixture
def terminal():
    return Terminal(io.StringIO())


@pytest.fixture
def opened(recipe, folder, terminal):
    with owned(folder):
        yield open_run(recipe, folder, find_position(recipe, folder, terminal), terminal)


def with_keys(recipe, section, **keys):
    return dataclasses.replace(recipe, **{section: dataclasses.replace(getattr(recipe, section), **keys)})


def test_the_automatic_degree_is_one(recipe):
    assert for_this_machine(recipe).parallel.dp == 1


def test_several_devices_are_refused_with_the_way_out(recipe):
    with pytest.raises(LayoutError, match="(?s)cannot be 1 devices.*`--single` runs it on one device"):
        for_this_machine(with_keys(recipe, "parallel", tp=2))


def test_a_job_of_several_processes_shares_the_batch(recipe):
    assert for_this_machine(with_keys(recipe, "train", tokens_per_step=16), 2).parallel.dp == 2


class TwoRanks:
    """This rank and one that gives other numbers where it is told to."""

    def __init__(self, differing=()):
        self.differing = differing

    def gather(self, *values):
        return np.array([values, [value + (i in self.differing) for i, value in enumerate(values)]])


def test_ranks_with_the_same_run_are_let_through(opened):
    refuse_other_ranks_run(opened, TwoRanks())


def test_ranks_that_differ_are_named_with_what_differs(opened):
    with pytest.raises(LaunchError, match="another recipe on rank 1; a run at another step on rank 1. Give all nodes"):
        refuse_other_ranks_run(opened, TwoRanks((0, 3)))


def test_a_folder_that_a_failure_leaves_empty_is_removed_with_what_was_made_for_it(folder):
    with pytest.raises(DataError), owned(folder):
        assert folder.path.is_dir()
        raise DataError("no")
    assert not folder.path.parent.exists() and folder.path.parent.parent.exists()


def test_a_folder_that_holds_something_stays_and_so_does_one_that_was_there(folder):
    with pytest.raises(DataError), owned(folder):
        (folder.path / "data").mkdir()
        raise DataError("no")
    assert (folder.path / "data").is_dir()
    (folder.path / "data").rmdir()
    with pytest.raises(DataError), owned(folder):
        raise DataError("no")
    assert folder.path.is_dir()


def test_a_full_disk_is_named_with_what_is_free(folder):
    message = "runs/small: could not be written: No space left.*; [0-9,]+ bytes are free"
    with pytest.raises(CheckpointError, match=message):
        with owned(folder):
            raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError), owned(folder):
        raise PermissionError(errno.EACCES, "Permission denied", "text.txt")


def test_files_that_a_killed_process_left_half_written_are_removed(folder):
    folder.create()
    (folder.path / ".recipe.yaml.77.tmp").write_text("half")
    with owned(folder):
        assert [path.name for path in folder.path.iterdir()] == [".lock"]


def test_a_new_run_stands_at_the_beginning(recipe, folder, terminal):
    position = find_position(recipe, folder, terminal)
    assert position.step == 0 and position.checkpoint is None and position.changes == ()


def test_another_rank_opens_what_the_first_has_found(recipe, folder, terminal):
    assert join_position(recipe, folder, 0).checkpoint is None
    for step in (1, 2):
        save_checkpoint(
            folder.checkpoints, step=step, samples=step, tokens=8 * step, weights={"w": np.ones(2)}, optimizer={},
            recipe=recipe_to_dict(recipe), versions={}, random={}, layout={}, keep=9, keep_every=0,
        )
    damaged = folder.checkpoints / "step_2" / "weights.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    found = find_position(recipe, folder, terminal)
    assert found.step == join_position(recipe, folder, found.step).step == 1
    with pytest.raises(CheckpointError, match="step_3: there is no such checkpoint folder"):
        join_position(recipe, folder, 3)


def test_a_run_that_can_start_has_its_vocabulary_and_its_batches(recipe, folder, terminal):
    with owned(folder):
        opened = open_run(recipe, folder, find_position(recipe, folder, terminal), terminal)
    assert opened.recipe.model.vocab_size == opened.corpus.tokenizer.vocab_size == 260
    assert opened.initial is None and opened.batches.num_samples > 3
    assert not folder.exists()  # it is a run when it trains


def test_a_corpus_that_is_too_small_is_refused_before_anything_is_loaded(recipe, folder, terminal):
    with owned(folder), pytest.raises(DataError, match="one sequence of 4096 tokens and its labels need 4097"):
        wanted = with_keys(recipe, "data", seq_len=4096)
        open_run(wanted, folder, find_position(wanted, folder, terminal), terminal)


def test_a_damaged_metrics_file_is_refused_before_anything_is_loaded(recipe, folder, terminal):
    with owned(folder), pytest.raises(CheckpointError, match="metrics.jsonl, line 1: not a row of metrics"):
        folder.metrics_file.write_text("half a ro\n")
        open_run(recipe, folder, find_position(recipe, folder, terminal), terminal)


@pytest.mark.parametrize("vocab_size", [None, 260])
def test_a_model_that_is_larger_than_the_machine_is_refused(vocab_size, recipe, folder, terminal, monkeypatch):
    monkeypatch.setattr(room, "memory", lambda: Memory(total_bytes=2**18, free_bytes=2**18))
    wanted = with_keys(recipe, "model", vocab_size=vocab_size)
    message = "weights, gradients, moments and the logits of a micro-batch are .* KiB; this machine has 256 KiB. Use a"
    with owned(folder), pytest.raises(RecipeError, match=message):
        open_run(wanted, folder, find_position(wanted, folder, terminal), terminal)
    assert (folder.path / "data").exists() == (vocab_size is None)  # known sizes are refused before text is read


def test_a_rank_that_is_larger_than_a_chip_is_refused_and_its_slice_is_not(recipe, folder, terminal, monkeypatch):
    monkeypatch.setattr(room, "memory", lambda: Memory(total_bytes=2**18, free_bytes=2**18))  # the host's is not asked
    monkeypatch.setattr(room, "find_chip", lambda name: dataclasses.replace(find_chip(name), hbm_bytes=1 << 23))
    large = with_keys(recipe, "model", vocab_size=8192, num_kv_heads=4, head_size=8)
    wanted = with_keys(large, "runtime", device="ascend")
    wanted = with_keys(wanted, "parallel", dp=1)
    message = "recipe 'small': rank 0 needs .* MiB at the peak of a step; a chip .910B3. has 8 MiB. Use more"
    with owned(folder), pytest.raises(RecipeError, match=message):
        open_run(wanted, folder, find_position(wanted, folder, terminal), terminal)
    cut = with_keys(wanted, "parallel", tp=4)
    with owned(folder):
        open_run(cut, folder, find_position(cut, folder, terminal), terminal)
