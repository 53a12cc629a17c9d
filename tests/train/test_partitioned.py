"""A run whose layout cuts the weights, on simulated Ascend devices: begun, trained, evaluated, saved and resumed.

Each rank is a process that runs `mindmodel train`. What a step computes is zero there; what is only loaded and saved is
not, and shapes are those of a device.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from command import Command, fill_with_corpus
from mindmodel.checkpoint.load import open_checkpoint
from mindmodel.models.decoder import initial_weight
from mindmodel.recipe.load import recipe_from_dict
from simulated_ranks import simulated

LAYOUTS = {
    "cp2": (2, "parallel.dp=1", "parallel.cp=2", "parallel.micro_batches=4"),
    "pp2": (2, "parallel.dp=1", "parallel.pp=2", "parallel.micro_batches=2"),
    "states": (2, "parallel.dp=2", "parallel.shard_optimizer=states"),
    "tp2 states": (4, "parallel.dp=2", "parallel.tp=2", "parallel.shard_optimizer=states"),
}
SIZES = ("model.num_layers=2", "optim.warmup_steps=1")


def job(layout: str, output, steps: int, *more, idle: bool = False) -> dict:
    """`mindmodel train` on all ranks of a layout, to a step."""
    count, *keys = LAYOUTS[layout]
    given = ["runtime.device=ascend", f"runtime.output={output}", f"train.steps={steps}", *SIZES, *keys, *more]
    return {"ranks": count, "arguments": ["train", "recipe.yaml", "--debug", *given], "idle": idle}


def refuse_difference(path, other) -> None:
    """Two checkpoints have the same tensors, bit by bit."""
    one, two = open_checkpoint(path), open_checkpoint(other)
    for mine, theirs in ((one.weights(), two.weights()), (one.optimizer(), two.optimizer())):
        assert set(mine) == set(theirs)
        for name, array in mine.items():
            np.testing.assert_array_equal(theirs[name], array, err_msg=name)


@pytest.fixture(scope="module")
def command(tmp_path_factory, standin) -> Command:
    """The folder of a run that one process on CPU has trained for two steps."""
    folder = tmp_path_factory.mktemp("partitioned")
    fill_with_corpus(folder)
    command = Command(folder)
    done = command.train("alone", "train.steps=2", *SIZES)
    assert done.returncode == 0, done.stderr
    return command


@pytest.fixture(scope="module")
def trained(command):
    """The CPU's run, held and saved as it is by two ranks, then trained for a step by two stages."""
    command.copy("alone", command.folder / "run")
    jobs = [job("states", "run", 3, idle=True), job("pp2", "run", 4, "train.check_finite=none", "log.norms_every=1")]
    command.printed = simulated(command.folder, jobs, level=1)
    return command


def test_two_ranks_save_what_one_process_has_trained(trained):
    refuse_difference(trained.run("alone").checkpoint(2), trained.run("run").checkpoint(3))
    index = open_checkpoint(trained.run("run").checkpoint(3)).index
    moments = [tensor for name, tensor in index.tensors.items() if name.endswith("moment.embedding.weight")]
    assert [[part.shape for part in tensor.slices] for tensor in moments] == 2 * [2 * [(150, 32)]]
    files = {part.file for tensor in moments for part in tensor.slices}
    assert files == {f"optimizer-rank{rank}.safetensors" for rank in range(2)}


def test_another_layout_goes_on_evaluates_and_saves(trained):
    first, last = trained.printed[1]
    assert "changed since: parallel.pp: 1 -> 2" in first and "step 4: saved" in first and "sample:" not in first
    assert "step 4: held-out loss" in first and "step 4: held-out loss" in last
    run = trained.run("run")
    assert run.steps == [2, 3, 4] and [row["eval_tokens"] for row in run.rows if "eval_tokens" in row][-1] == 309


def test_one_process_on_a_machine_without_a_chip_evaluates_it(trained):
    evaluated = trained("eval", "run", "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["loss"] == pytest.approx(np.log(300))  # of weights that are zero


@pytest.mark.long
def test_every_layout_saves_what_it_has_loaded_and_begins_as_one_device(command):
    names = "cp2", "tp2 states"
    for name in names:
        command.copy("alone", command.folder / name)
    folder = command.folder / "long"
    fill_with_corpus(folder)
    jobs = [job(name, command.folder / name, 3, idle=True) for name in names]
    simulated(folder, [*jobs, job("pp2", "fresh", 2, idle=True)], level=0)
    for name in names:
        refuse_difference(command.run("alone").checkpoint(2), command.run(name).checkpoint(3))
    fresh = open_checkpoint(folder / "fresh" / "checkpoints" / "step_2")
    recipe = recipe_from_dict(fresh.index.recipe, "fresh")
    for name, array in fresh.weights().items():
        expected = initial_weight(name, array.shape, recipe.model, recipe.train.seed)
        np.testing.assert_array_equal(array, expected, err_msg=name)
    assert not any(array.any() for name, array in fresh.optimizer().items() if "moment" in name)
