"""A run opened to make steps of it again: what is found, and what is refused before MindSpore is loaded."""

from __future__ import annotations

import hashlib
import io
import json
import shutil

import numpy as np
import pytest

from mindmodel.checkpoint.run_folder import RunFolder
from mindmodel.checkpoint.save import save_checkpoint
from mindmodel.data.prepare import prepare
from mindmodel.debug.replay.find import Stretch, find_replay, stretches
from mindmodel.errors import CheckpointError, DataError, LayoutError, RecipeError
from mindmodel.recipe.dump import recipe_to_dict, recipe_to_yaml
from mindmodel.recipe.load import load_recipe
from mindmodel.recipe.rules import with_degrees
from mindmodel.terminal import Terminal

TEXT = """
model: {hidden_size: 32, num_layers: 1, num_heads: 4, ffn_size: 64, vocab_size: 260}
data: {source: SOURCE, tokenizer_vocab_size: 260, seq_len: 8, heldout: 0}
train: {steps: 40, tokens_per_step: 16}
optim: {peak_lr: 1e-2}
log: {every: 4}
"""


class Made:
    """The folder of a run as training leaves it behind, its recipe, and what was told on opening it again."""

    def __init__(self, path, recipe):
        self.folder, self.recipe, self.stream = RunFolder(path), recipe, io.StringIO()
        prepare(recipe.data, path, lambda text: None)
        self.write_recipe(recipe)
        self.write_rows({"from_step": 0, "changes": []}, {"step": 4, "loss": 5.0}, {"step": 20, "loss": 4.0})
        for step in (8, 16):
            self.save(step, recipe)

    def write_recipe(self, recipe):
        self.folder.recipe_file.write_text(recipe_to_yaml(recipe))

    def write_rows(self, *rows):
        self.folder.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def save(self, step, recipe):
        save_checkpoint(
            self.folder.checkpoints, step=step, samples=2 * step, tokens=16 * step, weights={"w": np.ones(2)},
            optimizer={}, recipe=recipe_to_dict(recipe), versions={}, random={}, layout={}, keep=9, keep_every=0,
        )

    def find(self, step, *overrides, **options):
        return find_replay(self.folder.path, step, Terminal(self.stream), overrides=overrides, **options)

    def content(self):
        """Every file, and when it was written; a folder that was only read has the same."""
        paths = sorted(self.folder.path.rglob("*"))
        return [(path, path.stat().st_mtime_ns, path.is_file() and digest(path)) for path in paths]


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replayed")
    (folder / "text.txt").write_text("one two three four five six\n" * 90)
    (folder / "small.yaml").write_text(TEXT.replace("SOURCE", str(folder / "text.txt")))
    return folder


@pytest.fixture
def made(original, tmp_path):
    return Made(tmp_path / "run", with_degrees(load_recipe(original / "small.yaml"), dp=1))


@pytest.mark.parametrize("step, checkpoint", [(16, 16), (23, 16), (15, 8), (7, 0), (0, 0)])
def test_it_begins_at_the_newest_whole_checkpoint_at_or_before_the_step(made, step, checkpoint):
    before = made.content()
    replay = made.find(step)
    assert replay.opened.position.step == checkpoint
    assert replay.opened.recipe == made.recipe and replay.last == 20
    assert made.content() == before and not (made.folder.path / ".lock").exists()


def test_the_samples_are_those_of_the_run(made):
    batches = made.find(16).opened.batches
    assert batches.batch(32, 2).ids.shape == (2, 8) and batches.num_samples > 40


def test_a_damaged_checkpoint_is_passed_over_in_a_line(made):
    weights = made.folder.checkpoints / "step_16" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    assert made.find(20).opened.position.step == 8
    assert "step_16 is passed over" in made.stream.getvalue()


def test_a_run_that_another_process_writes_to_is_read_all_the_same(made):
    made.folder.create()
    with made.folder.lock():
        assert made.find(8).opened.position.step == 8


def test_keys_of_this_replay_are_put_on_top_of_the_run_s(made):
    recipe = made.find(8, "runtime.threads=1", "train.compute_dtype=bfloat16").opened.recipe
    assert (recipe.runtime.threads, recipe.train.compute_dtype) == (1, "bfloat16")


def test_what_several_ranks_made_is_made_again_by_one_when_that_is_asked_for(made):
    made.write_recipe(with_degrees(made.recipe, dp=2))
    with pytest.raises(LayoutError, match="2 ranks have trained this run.*`--single` does that"):
        made.find(8)
    assert made.find(8, single=True).opened.recipe.parallel.dp == 1


def test_what_is_no_run_is_refused(made, tmp_path):
    made.folder.recipe_file.unlink()
    with pytest.raises(CheckpointError, match="holds no recipe.yaml, so it is no run"):
        made.find(8)


def test_an_imported_model_is_refused(made):
    text = recipe_to_yaml(made.recipe).replace("  source: ", "  # source: ")
    made.folder.recipe_file.write_text(text)
    with pytest.raises(CheckpointError, match="holds an imported model, not a training run"):
        made.find(8)


def test_a_step_is_beyond_the_run_when_the_next_row_would_have_told_of_it(made):
    assert made.find(23).opened.position.step == 16  # a row is written every 4 steps
    with pytest.raises(CheckpointError, match="has made 20 of 40 steps; step 24 is beyond. Use a step up to 20"):
        made.find(24)


def test_a_corpus_that_is_gone_or_changed_is_refused(made):
    shard = made.folder.data / "train.bin"
    shard.write_bytes(b"\0" * shard.stat().st_size)
    with pytest.raises(DataError, match="train.bin: is missing or not as it was made"):
        made.find(8)
    shutil.rmtree(made.folder.data)
    with pytest.raises(DataError, match="corpus.json: is missing, so the folder holds no whole corpus"):
        made.find(8)
    assert not made.folder.data.exists()


@pytest.mark.parametrize("key", ["train.seed=2", "model.num_layers=2", "data.seq_len=4"])
def test_a_key_that_would_make_it_another_run_is_refused(made, key):
    with pytest.raises(RecipeError, match=f"command line: {key.partition('=')[0]}: .*: a step of another run"):
        made.find(8, key)


def test_a_stretch_is_made_with_one_recipe():
    rows = [
        {"from_step": 0, "changes": []},
        {"from_step": 4, "changes": ["log.every: 4 -> 1", "checkpoint.keep: 2 -> 3"]},  # these change no number
        {"from_step": 8, "changes": ["optim.peak_lr: 0.01 -> 0.1"]},
        {"step": 9, "loss": 1.0},
        {"from_step": 16, "changes": ["parallel.dp: 1 -> 2", "log.every: 4 -> 1"]},
    ]
    assert stretches(rows) == [
        Stretch(start=0, end=8, changes=()),
        Stretch(start=8, end=16, changes=("optim.peak_lr: 0.01 -> 0.1",)),
        Stretch(start=16, end=None, changes=("parallel.dp: 1 -> 2",)),
    ]
    assert stretches([]) == [Stretch(start=0, end=None, changes=())]


def test_steps_that_were_made_again_count_as_they_were_made_last():
    rows = [
        {"from_step": 0, "changes": []},
        {"from_step": 8, "changes": ["optim.peak_lr: 0.01 -> 0.1"]},
        {"from_step": 16, "changes": ["optim.peak_lr: 0.1 -> 0.2"]},
        {"from_step": 8, "changes": ["optim.peak_lr: 0.01 -> 0.3"]},
        {"from_step": 0, "changes": []},
        {"from_step": 4, "changes": ["optim.eps: 1e-8 -> 1e-6"]},
    ]
    assert stretches(rows[:4])[1:] == [Stretch(start=8, end=None, changes=("optim.peak_lr: 0.01 -> 0.3",))]
    assert [each.start for each in stretches(rows)] == [0, 4]


@pytest.fixture
def changed(made):
    """The run went on from step 8 with a larger learning rate."""
    made.write_recipe(load_recipe(made.folder.recipe_file, ["optim.peak_lr=0.1"]))
    made.write_rows(
        {"from_step": 0, "changes": []},
        {"from_step": 8, "changes": ["optim.peak_lr: 0.01 -> 0.1"]},
        {"step": 20, "loss": 4.0},
    )
    return made


def test_a_step_is_made_with_the_recipe_that_the_run_had_there(changed):
    assert changed.find(16).opened.recipe.optim.peak_lr == changed.find(8).opened.recipe.optim.peak_lr == 0.1
    earlier = changed.find(7)
    assert earlier.opened.recipe.optim.peak_lr == 0.01 and earlier.stretch.end == 8


def test_a_recipe_that_no_checkpoint_holds_any_more_is_refused(changed):
    shutil.rmtree(changed.folder.checkpoints / "step_8")
    with pytest.raises(CheckpointError, match="steps 1 to 8 were made with another recipe.*Use a step from 8 on"):
        changed.find(7)


def test_a_checkpoint_of_before_the_recipe_changed_is_not_gone_on_from(changed):
    shutil.rmtree(changed.folder.checkpoints / "step_8")
    with pytest.raises(CheckpointError, match="step 10 is that of step 0, and from step 8 on .*peak_lr: 0.01 -> 0.1"):
        changed.find(10)
