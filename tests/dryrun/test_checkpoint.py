"""What MindSpore's compiler cut for the ranks of a layout is saved by them, and one device loads it whole."""

from __future__ import annotations

import numpy as np
import pytest

from crew import save_by_all
from mindmodel.checkpoint import shares
from mindmodel.checkpoint.layout import optimizer_placements, weight_placements
from mindmodel.checkpoint.load import open_checkpoint
from mindmodel.checkpoint.tensors import HeldTensors
from mindmodel.dryrun.prove import MOMENT


@pytest.fixture
def saved(partition, tmp_path, monkeypatch):
    """The checkpoint of all ranks; a first moment is a weight and 1, since fresh ones are all zero."""
    monkeypatch.setattr(shares, "GRAIN_BYTES", 512)
    weights = weight_placements(partition.recipe)
    placements = {**weights, **optimizer_placements(weights)}

    def holding(rank: int) -> dict[str, np.ndarray]:
        cut = {name: array for name, array in partition.slices[rank].items() if name in placements}
        return {name: cut[name.removeprefix(MOMENT)] + 1 if MOMENT in name else array for name, array in cut.items()}

    return open_checkpoint(save_by_all(tmp_path, 1, holding, placements, partition.mesh))


def test_one_device_loads_what_the_ranks_held(partition, saved):
    for name, array in partition.before.items():
        np.testing.assert_array_equal(saved.weights()[name], array, strict=True)
        np.testing.assert_array_equal(saved.optimizer()[f"{MOMENT}{name}"], array + 1, strict=True)
    assert set(saved.weights()) == set(partition.before)


@pytest.mark.parametrize("layout", ["dp2 tp2", "dp4 states", "pp2 tied", "dp2 tp4 copied heads states", "everything"])
def test_the_ranks_load_what_one_device_saved(partition, tmp_path):
    placements = weight_placements(partition.recipe)
    alone = weight_placements(partition.one.job.recipe)
    path = save_by_all(tmp_path, 1, lambda rank: partition.before, alone, type(partition.mesh)())
    weights = open_checkpoint(path).weights()
    for rank, slices in enumerate(partition.slices):
        for name, array in HeldTensors(weights, placements, partition.mesh, rank).items():
            np.testing.assert_array_equal(array, slices[name], strict=True)
