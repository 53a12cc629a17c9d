"""Checkpoints are written beside the steps: said when they are whole, and never without a word when they are not."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from mindmodel.checkpoint.load import open_checkpoint
from mindmodel.checkpoint.retention import list_checkpoints
from mindmodel.checkpoint.run_folder import RunFolder
from mindmodel.errors import CheckpointError
from mindmodel.parallel.environment import Place
from mindmodel.parallel.heartbeat import Heartbeat
from mindmodel.recipe.rules import with_defaults, with_degrees


@pytest.fixture
def training(runtime, small_recipe, tmp_path):
    """What Saving sees of a training."""
    from mindmodel.models.decoder import Decoder
    from mindmodel.parallel.ranks import Ranks
    from mindmodel.train.optim import AdamW

    recipe = with_degrees(with_defaults(small_recipe), dp=1)
    checkpoint = dataclasses.replace(recipe.checkpoint, keep=1, keep_best=True)
    recipe = dataclasses.replace(recipe, checkpoint=checkpoint)
    decoder, said = Decoder(recipe.model, recipe.data.seq_len), []
    folder = RunFolder(tmp_path / "run")
    folder.create()
    return SimpleNamespace(
        recipe=recipe,
        step=0,
        opened=SimpleNamespace(position=SimpleNamespace(checkpoint=None), folder=folder),
        ranks=Ranks(Place()),
        heartbeat=Heartbeat(),
        terminal=SimpleNamespace(say=said.append),
        said=said,
        decoder=decoder,
        optimizer=AdamW(decoder.trainable_params(), recipe.optim),
    )


class Rows(list):
    """Metrics that can be looked at."""

    def write(self, step, scalars):
        self.append((step, scalars))


@pytest.fixture
def saving(training):
    from mindmodel.train.saving import Saving

    return Saving(training)


def test_a_checkpoint_is_said_when_it_is_whole_and_what_it_cost_the_loop_is_a_row(training, saving):
    rows, folder = Rows(), training.opened.folder.checkpoints
    with saving.finishing():
        training.step = 3
        saving.save(rows)
        saving.save(rows)  # of the same step there is one
    assert training.said == [f"step 3: saved {folder / 'step_3'}"]
    ((step, scalars),) = rows
    assert step == 3 and scalars["save_blocked_s"] > 0
    checkpoint = open_checkpoint(folder / "step_3")
    assert checkpoint.index.samples == 3 * training.recipe.sequences_per_step
    for parameter in training.decoder.trainable_params():
        np.testing.assert_array_equal(checkpoint.weights()[parameter.name], parameter.asnumpy())
    assert set(checkpoint.optimizer()) == set(training.optimizer.state())


def test_a_checkpoint_that_cannot_be_written_ends_the_training(training, saving):
    training.opened.folder.checkpoints.write_text("a file")
    with pytest.raises(CheckpointError, match="step_1: the checkpoint could not be written: "):
        with saving.finishing():
            training.step = 1
            saving.save(Rows())
    assert training.said == []


def test_another_failure_is_told_and_what_was_begun_is_written(training, saving):
    with pytest.raises(ValueError, match="a step"):
        with saving.finishing():
            training.step = 1
            saving.save(Rows())
            raise ValueError("a step")
    assert list_checkpoints(training.opened.folder.checkpoints) == [1]


def test_the_best_is_kept(training, saving):
    with saving.finishing():
        for training.step, loss in ((1, 2.0), (2, 1.0), (3, 1.5), (4, 1.2)):
            saving.note(loss)
            saving.save(Rows())
    assert list_checkpoints(training.opened.folder.checkpoints) == [2, 4]


def test_losses_of_before_count_up_to_the_step_that_the_run_goes_on_from(tmp_path):
    from mindmodel.train.saving import heldout_losses

    folder = RunFolder(tmp_path)
    lines = ('{"step": 1, "loss": 5.0}', '{"step": 1, "eval_loss": 2.0}', '{"step": 2, "eval_loss": null}',
             '{"step": 3, "eval_loss": 1.0}', '{"mfu_formula": "x"}')
    folder.metrics_file.write_text("".join(f"{line}\n" for line in lines))
    assert heldout_losses(folder, 2) == {1: 2.0} and heldout_losses(folder, 3) == {1: 2.0, 3: 1.0}
