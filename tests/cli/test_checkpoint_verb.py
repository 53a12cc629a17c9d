"""The verb looks into checkpoints of any layout, and says by its exit code what it found."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from crew import held, save_by_all
from mindmodel.checkpoint.run_folder import RunFolder
from mindmodel.checkpoint.shares import Placement
from mindmodel.cli.main import main
from mindmodel.parallel.mesh import Mesh

WEIGHT = Placement(shape=(4, 6), dtype="float32", axes=("tp", None), stage=0)
PLACEMENTS = {"w": WEIGHT, "first_moment.w": WEIGHT}
ARRAYS = {name: np.arange(24, dtype=np.float32).reshape(4, 6) + number for number, name in enumerate(PLACEMENTS)}


def save(run, step, mesh=Mesh(tp=2), placements=PLACEMENTS, **changed):
    arrays = {**ARRAYS, **changed}
    return save_by_all(run.checkpoints, step, held(arrays, placements, mesh), placements, mesh)


@pytest.fixture
def run(tmp_path):
    """A run with a checkpoint of two ranks."""
    run = RunFolder(tmp_path / "run")
    run.create()
    run.recipe_file.write_text("name: tiny\n")
    save(run, 3)
    return run


def asked(capsys, *arguments, code=0):
    """What the verb prints."""
    assert main(["checkpoint", *map(str, arguments)]) == code
    printed = capsys.readouterr()
    return printed.out if code < 2 else printed.err


def flip_last_byte(path):
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_inspect_shows_position_layout_and_every_tensor(run, capsys):
    shown = asked(capsys, "inspect", run.path)
    assert "step 3, 8 samples, 512 tokens" in shown and "files       4, " in shown
    assert "  w               float32 [4, 6] in 2\n" in shown


def test_inspect_as_json_names_every_slice_with_its_checksum(run, capsys):
    shown = json.loads(asked(capsys, "inspect", run.checkpoints / "step_3", "--json"))
    assert (shown["step"], shown["samples"], shown["layout"]) == (3, 8, {"dp": 1})
    tensor = next(tensor for tensor in shown["tensors"] if tensor["name"] == "w")
    assert (tensor["shape"], tensor["dtype"]) == ([4, 6], "float32")
    first, second = tensor["slices"]
    assert (first["file"], first["offset"], first["shape"]) == ("weights-rank0.safetensors", [0, 0], [2, 6])
    assert second["offset"] == [2, 0] and len(second["sha256"]) == 64


def test_verify_names_all_that_is_damaged_in_all_checkpoints_of_a_run(run, capsys):
    assert "step_3: whole: 2 tensors, " in asked(capsys, "verify", run.path)
    save(run, 4)
    broken = save(run, 5)
    flip_last_byte(broken / "weights-rank1.safetensors")
    (broken / "optimizer-rank0.safetensors").unlink()
    shown = asked(capsys, "verify", run.path, code=1)
    assert "step_4: whole" in shown and "step_5: whole" not in shown
    assert "weights-rank1.safetensors: damaged: SHA-256" in shown and "of tensor 'w', the index says" in shown
    assert "'optimizer-rank0.safetensors' is missing" in shown
    (broken / "index.json").write_text("{")
    assert "index.json: not JSON" in asked(capsys, "verify", broken, code=1)


def test_verify_of_a_run_without_checkpoints_is_refused(run, capsys):
    for path in sorted(run.checkpoints.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert "there is no checkpoint. Train the run until it saves one." in asked(capsys, "verify", run.path, code=2)


def test_diff_of_two_layouts_of_the_same_numbers_finds_nothing(run, capsys, tmp_path):
    columns = {name: dataclasses.replace(WEIGHT, axes=(None, "tp")) for name in PLACEMENTS}
    other = RunFolder(tmp_path / "other")
    path = save(other, 3, Mesh(tp=3), columns)
    assert "are the same, bit by bit" in asked(capsys, "diff", run.path, path)


def test_diff_names_what_differs(run, capsys, tmp_path):
    changed = ARRAYS["w"].copy()
    changed[3, 5] += 2
    placements = {**PLACEMENTS, "v": WEIGHT}
    path = save(run, 4, placements=placements, w=changed, v=changed)
    shown = asked(capsys, "diff", run.checkpoints / "step_3", path, code=1)
    assert shown.splitlines() == [
        "step: 3 -> 4", "'v' is only in the second", "'w' differs in 1 of 24 numbers, by up to 2", "3 differences",
    ]
    halves = {**PLACEMENTS, "w": dataclasses.replace(WEIGHT, dtype="float16")}
    path = save(run, 4, placements=halves, w=ARRAYS["w"].astype(np.float16))
    shown = asked(capsys, "diff", path, run.checkpoints / "step_3", code=1)
    assert "'w' is [4, 6] float16 and [4, 6] float32" in shown


@pytest.mark.parametrize("number", [np.nan, -0.0])
def test_a_number_that_differs_in_its_bits_alone_differs(run, capsys, number):
    changed = ARRAYS["w"].copy()
    changed[0, 0] = number
    path = save(run, 4, w=changed)
    assert "'w' differs in 1 of 24 numbers" in asked(capsys, "diff", run.checkpoints / "step_3", path, code=1)


def test_export_writes_one_file_that_safetensors_reads(run, capsys, tmp_path):
    assert "wrote" in asked(capsys, "export", run.path, tmp_path / "w.safetensors")
    assert set(load_file(tmp_path / "w.safetensors")) == {"w"}
    asked(capsys, "export", run.path, tmp_path / "all.safetensors", "--optimizer")
    found = load_file(tmp_path / "all.safetensors")
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
    shown = asked(capsys, "export", run.path, tmp_path / "w.safetensors", code=2)
    assert "is there already. Name a new file." in shown


def test_export_into_a_folder_that_is_not_there_is_refused(run, capsys, tmp_path):
    shown = asked(capsys, "export", run.path, tmp_path / "none" / "w.safetensors", code=2)
    assert "could not be written: No such file or directory. Choose another place." in shown
