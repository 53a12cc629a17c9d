"""A dry run: which ranks, how many at once; and folders that killed runs left."""

from __future__ import annotations

import dataclasses
import os
from types import SimpleNamespace

import pytest

from dry_runs import recipe_for
from mindmodel.dryrun import compile as compile_module
from mindmodel.dryrun.run import chosen_ranks, host_bytes_of, jobs_at_once
from mindmodel.errors import LayoutError
from mindmodel.machine import Memory
from mindmodel.parallel.mesh import Mesh

GIB = 1 << 30


def recipe_of(num_layers=4, sequences=16, **parallel):
    model = {"hidden_size": 64, "num_layers": num_layers, "num_heads": 8, "ffn_size": 128, "vocab_size": 512}
    return recipe_for(model, seq_len=32, sequences=sequences, **parallel)


def test_one_rank_of_the_first_the_middle_and_the_last_stage_is_compiled():
    assert chosen_ranks(Mesh(dp=8, tp=8)) == (0,)
    assert chosen_ranks(Mesh(pp=2, tp=2)) == (0, 2)
    assert chosen_ranks(Mesh(pp=4, dp=2, tp=2)) == (0, 8, 12)


def test_ranks_that_are_asked_for_are_compiled_once_each():
    assert chosen_ranks(Mesh(dp=4), [3, 1, 3]) == (3, 1)


def test_host_memory_grows_with_the_layers_of_a_stage_and_not_with_their_width():
    recipe = recipe_of(dp=2)
    wide = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, hidden_size=4096))
    assert host_bytes_of(recipe_of(num_layers=8, dp=2)) > host_bytes_of(recipe) == host_bytes_of(wide)
    assert host_bytes_of(recipe_of(num_layers=8, dp=1, pp=4)) < host_bytes_of(recipe_of(num_layers=8, dp=1, pp=2))


def test_as_many_ranks_are_compiled_at_once_as_memory_and_cores_allow():
    recipe = recipe_of(dp=2)
    needed = host_bytes_of(recipe)
    assert jobs_at_once(recipe, 8, Memory(total_bytes=64 * GIB, free_bytes=3 * needed)) == 3
    assert jobs_at_once(recipe, 2, Memory(total_bytes=64 * GIB, free_bytes=3 * needed)) == 2
    assert jobs_at_once(recipe, 2, None) == 2


def test_where_not_even_one_fits_it_is_refused_with_both_numbers():
    with pytest.raises(LayoutError, match="may take .* MiB of this machine's memory, and 512 MiB are free. Free some"):
        jobs_at_once(recipe_of(dp=2), 2, Memory(total_bytes=GIB, free_bytes=GIB // 2))


def test_a_rank_outside_the_mesh_is_refused():
    with pytest.raises(LayoutError, match="rank 4 is none of 4 devices. Use 0 to 3."):
        chosen_ranks(Mesh(dp=4), [0, 4])


def folder_of(parent, process):
    folder = parent / f"mindmodel-dryrun-{process}-abc"
    (folder / "rank 0").mkdir(parents=True)
    return folder


def test_folders_of_processes_that_are_gone_are_removed_and_no_others(tmp_path):
    gone, mine = folder_of(tmp_path, 2**22 + 1), folder_of(tmp_path, os.getpid())
    other = tmp_path / "mindmodel-dryrun-notes-abc"
    other.mkdir()
    compile_module._remove_left_folders(tmp_path)
    assert not gone.exists() and mine.exists() and other.exists()


def test_a_folder_that_another_process_removes_meanwhile_is_passed_over(tmp_path):
    listed = SimpleNamespace(glob=lambda pattern: [tmp_path / f"mindmodel-dryrun-{2**22 + 1}-abc"])
    compile_module._remove_left_folders(listed)
