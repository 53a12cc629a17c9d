"""MindFormers itself loads what is written for it, and what it saves is read, bit by bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from command import ROOT
from mindmodel.convert.hf import to_hf
from mindmodel.convert.mindformers import from_mindformers, to_mindformers
from mindmodel.convert.mindformers_folder import find_iteration, read_tensors
from runs import make_run

CHILD = Path(__file__).with_name("mindformers_child.py")
JOBS = {"loaded": ("load", "given"), "saved": ("save", "saved")}


def exchange(folder, run, family, jobs):
    """Write a run for MindFormers and have it do its jobs: the arrays that it answers with."""
    to_mindformers(run.path, folder / "given", max_file_bytes=2000)
    to_hf(run.path, folder / "hf")
    config = json.loads((folder / "hf" / "config.json").read_text())
    given = {"family": family, "config": config}
    orders = [
        {"do": do, "folder": str(folder / place), "out": str(folder / f"{name}.npz"), **given}
        for name, (do, place) in jobs.items()
    ]
    (folder / "jobs.json").write_text(json.dumps(orders))
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, CHILD, "jobs.json"], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return SimpleNamespace(folder=folder, **{name: np.load(folder / f"{name}.npz") for name in jobs})


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    """With layouts: four ranks."""
    folder = tmp_path_factory.mktemp("qwen3")
    jobs = {"converted": ("load_hf", "hf"), "cut": ("save_cut", "cut"), "areas": ("reshard", "given")}
    return exchange(folder, make_run(folder / "run", family="qwen3"), "qwen3", JOBS | jobs)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Its Llama is of an older kind: the head size follows from the hidden size, and nothing converts whole folders."""
    folder = tmp_path_factory.mktemp("llama")
    run = make_run(folder / "run", family="llama", head_size=4)
    return exchange(folder, run, "llama", JOBS | {"converted": ("convert_hf", "hf")})


def same(arrays, others) -> None:
    assert set(arrays) == set(others)
    for name in arrays:
        np.testing.assert_array_equal(arrays[name], others[name], strict=True, err_msg=name)


def tensors_in(folder):
    return {name: tensor.read() for name, tensor in read_tensors(find_iteration(folder)).items()}


def through_a_run(exchanged, place, folder):
    """What MindFormers has saved, made a run and written for it again."""
    from_mindformers(exchanged.folder / place, folder / "run", exchanged.folder / "hf")
    to_mindformers(folder / "run", folder / "back")
    return tensors_in(folder / "back")


def test_it_loads_what_was_written_as_it_converts_the_hugging_face_folder_of_the_run(qwen3):
    assert len(list((qwen3.folder / "given").glob("iteration_00000010/model-*"))) > 2
    same(qwen3.loaded, qwen3.converted)


@pytest.mark.parametrize("place", ["saved", "cut"])
def test_what_it_saves_with_and_without_layouts_is_read_and_comes_back_through_a_run(qwen3, place, tmp_path):
    same(tensors_in(qwen3.folder / place), getattr(qwen3, place))
    same(through_a_run(qwen3, place, tmp_path), getattr(qwen3, place))


def test_its_loader_cuts_what_was_written_for_four_ranks(qwen3):
    whole = tensors_in(qwen3.folder / "given")
    for rank in range(4):
        held = np.load(qwen3.folder / f"areas-{rank}.npz")
        blocks = {name: tuple(slice(*ends) for ends in qwen3.areas[f"{name}/{rank}"]) for name in whole}
        same(held, {name: whole[name][block] for name, block in blocks.items()})


@pytest.mark.long
def test_its_llama_loads_and_saves_alike(llama, tmp_path):
    same(llama.loaded, llama.converted)
    same(through_a_run(llama, "saved", tmp_path), llama.saved)
