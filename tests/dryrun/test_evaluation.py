"""The forward pass with which a run over several ranks evaluates: that of one device, compiled after the step."""

from __future__ import annotations

import pytest

from mindmodel.dryrun.interpret import Interpreter
from mindmodel.dryrun.prove import TOLERANCE, batches_of


@pytest.mark.parametrize("layout", ["everything", "cp2", "dp2 accumulated"])
def test_the_last_rank_has_the_loss_of_one_device(partition, forward_passes):
    recipe, batch = partition.recipe, batches_of(partition.recipe)[0]
    interpreter = Interpreter(forward_passes, partition.slices)
    rows, total = recipe.padded_sequences // recipe.parallel.micro_batches, 0.0
    for first in range(0, recipe.padded_sequences, rows):
        part = batch.ids[first : first + rows], batch.labels[first : first + rows]
        total += interpreter.run([part] * len(partition.ranks))[-1]
    assert total / (batch.labels >= 0).sum() == pytest.approx(partition.alone.losses[0][0], rel=TOLERANCE)
