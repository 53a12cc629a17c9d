"""What can go wrong between ranks, disks and people: it is named, and the newest whole checkpoint stays the newest."""

from __future__ import annotations

import subprocess
import threading
from contextlib import suppress

import numpy as np
import pytest

from crew import FACTS, held, save_alone, save_by_all
from mindmodel.checkpoint import part
from mindmodel.checkpoint.load import newest_checkpoint, open_checkpoint
from mindmodel.checkpoint.part import Crew
from mindmodel.checkpoint.retention import list_checkpoints
from mindmodel.checkpoint.save import save_checkpoint
from mindmodel.checkpoint.shares import Placement
from mindmodel.errors import CheckpointError
from mindmodel.parallel.mesh import Mesh
from mindmodel.tensor_file import write_tensors

TWO = Mesh(tp=2)
ROWS = {"w": Placement(shape=(6, 4), dtype="float32", axes=("tp", None), stage=0)}


def save(folder, step, placements=ROWS, **crew):
    arrays = {"w": np.full((6, 4), step, np.float32) + np.arange(6, dtype=np.float32)[:, None]}
    return save_by_all(folder, step, held(arrays, placements, TWO), placements, TWO, **crew)


def save_as(rank, folder, step, weights=None, **crew):
    """Save as one of two ranks, the other being absent."""
    crew = Crew(rank=rank, mesh=TWO, placements=ROWS, attempt="b", **crew)
    weights = {"w": np.zeros((3, 4), np.float32)} if weights is None else weights
    return save_checkpoint(folder, step=step, weights=weights, optimizer={}, layout={}, crew=crew, **FACTS)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def found(folder):
    """The step of the newest whole checkpoint, and what was said of those above it."""
    said = []
    return newest_checkpoint(folder, said.append).index.step, " ".join(said)


def test_files_that_were_swapped_are_named(tmp_path):
    save(tmp_path, 1)
    one, other = (save(tmp_path, 2) / f"weights-rank{rank}.safetensors" for rank in (0, 1))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    step, said = found(tmp_path)
    assert step == 1 and "step_2/weights-rank0.safetensors: damaged: SHA-256" in said and "passed over" in said


def test_the_index_of_another_checkpoint_is_found_out(tmp_path):
    save(tmp_path, 1)
    other = save(tmp_path, 3)
    for name in ("index.json", "slices.safetensors"):
        (other / name).write_bytes((save(tmp_path, 2) / name).read_bytes())
    step, said = found(tmp_path)
    assert step == 2 and "step_3/weights-rank0.safetensors: damaged: SHA-256" in said


def test_a_rank_that_never_returns_is_named_and_leaves_nothing(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"\.step_2\.b\.tmp: rank 1 did not write its part within 0.2 s. Nothing"):
        save_as(0, tmp_path, 2, patience_s=0.2)
    assert names(tmp_path) == ["step_1"]


def test_a_first_rank_that_never_begins_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"\.step_2\.b\.tmp: rank 1 waited 0.2 s for rank 0 to begin this"):
        save_as(1, tmp_path, 2, patience_s=0.2)


def test_what_another_job_left_is_not_joined(tmp_path):
    (tmp_path / ".step_2.a.tmp").mkdir()
    with pytest.raises(CheckpointError, match="rank 1 waited 0.2 s for rank 0"):
        save_as(1, tmp_path, 2, patience_s=0.2)
    assert names(tmp_path / ".step_2.a.tmp") == []


def test_a_rank_of_a_dead_job_that_goes_on_writing_hinders_nobody(tmp_path):
    """It left its folder, and writes into it while another job removes that and saves the same step."""
    save(tmp_path, 1)
    folder, stop = tmp_path / ".step_2.a.tmp", threading.Event()
    folder.mkdir()

    def write():
        while not stop.is_set():
            with suppress(FileNotFoundError, FileExistsError):
                write_tensors(folder / "weights-rank1.safetensors", {"w": np.zeros((3, 4), np.float32)})
                folder.mkdir()  # it cannot even be removed for good

    straggler = threading.Thread(target=write)
    straggler.start()
    try:
        for _ in range(20):
            save(tmp_path, 2, attempt="b")
    finally:
        stop.set()
        straggler.join()
    assert found(tmp_path) == (2, "") and list_checkpoints(tmp_path) == [1, 2]
    save(tmp_path, 3)
    assert names(tmp_path) == ["step_1", "step_2", "step_3"]


def test_a_rank_that_cannot_write_fails_them_all_and_leaves_nothing(tmp_path, monkeypatch):
    save(tmp_path, 1)
    write = part.write_tensors

    def fail(path, tensors, new):
        if "rank1" in path.name:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return write(path, tensors, new=new)

    monkeypatch.setattr(part, "write_tensors", fail)
    with pytest.raises(CheckpointError, match="rank 1 could not write its part: .*No space left on device"):
        save(tmp_path, 2)
    assert names(tmp_path) == ["step_1"] and found(tmp_path) == (1, "")


def test_a_file_that_went_away_before_the_end_is_missed(tmp_path, monkeypatch):
    write = part.leave_note

    def leave_note(folder, written, crew):
        (folder / "weights-rank1.safetensors").write_bytes(b"half")
        write(folder, written, crew)

    monkeypatch.setattr("mindmodel.checkpoint.save.leave_note", leave_note)
    with pytest.raises(CheckpointError, match=r"does not make up .*: 'weights-rank1.safetensors' has 4 of \d+ bytes"):
        save(tmp_path, 2)
    assert names(tmp_path) == []


def test_a_full_disk_leaves_the_checkpoint_before_and_nothing_else(small_disk):
    folder = small_disk(100)
    large = {"w": Placement(shape=(6000, 4), dtype="float32", axes=("tp", None), stage=0)}
    save(folder, 1)
    with pytest.raises(CheckpointError, match="No space left on device"):
        arrays = {"w": np.zeros((6000, 4), np.float32)}
        save_by_all(folder, 2, held(arrays, large, TWO), large, TWO)
    assert names(folder) == ["step_1"] and found(folder) == (1, "")


def test_a_folder_that_cannot_be_written_is_named(small_disk):
    folder = small_disk(100)
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    with pytest.raises(CheckpointError, match="step_2: rank 0: the checkpoint could not be written: Read-only file"):
        save_as(0, folder, 2)


def test_a_checkpoint_that_is_being_read_is_removed_later(tmp_path):

    def save_one(step):
        save_alone(tmp_path, step, {"w": np.full(4, step, np.float32)}, keep=1)

    save_one(1)
    reader = open_checkpoint(tmp_path / "step_1", verify=False)
    save_one(2)
    assert list_checkpoints(tmp_path) == [1, 2]
    np.testing.assert_array_equal(reader.weights()["w"], np.ones(4))
    reader.release()
    save_one(3)
    assert list_checkpoints(tmp_path) == [3]


def test_numbers_that_are_mapped_outlive_their_checkpoint(tmp_path):
    reader = open_checkpoint(save(tmp_path, 1))
    array = reader.weights().block("w", held_rows := reader.index.tensors["w"].slices[1])
    reader.release()
    for path in sorted((tmp_path / "step_1").iterdir()):
        path.unlink()
    assert array.shape == held_rows.shape and array[0, 0] == 4
