"""runtime.mode=pynative: the same run, with Python in the place of the compiled graph."""

from __future__ import annotations

import shutil

import pytest

TOLERANCE = 1e-6
"""Relative, of loss and gradient norm. With the C++ kernels there is no difference; fused operators round otherwise."""


def test_a_run_goes_on_in_pynative_mode_as_it_would_in_its_graph(finished, tmp_path, native_library):
    run, whole = finished.copy("run", tmp_path / "run"), finished.run("run")
    for step in whole.steps:
        if step > 25:
            shutil.rmtree(run.checkpoint(step))
    done = finished.train(run.path, "runtime.mode=pynative", "train.stop_at=29")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "changed since: runtime.mode: graph -> pynative" in done.stdout
    assert "compiling" not in done.stdout and "native kernels, one by one from Python" in done.stdout
    assert len(run.losses) == 29
    for step, numbers in run.losses.items():
        assert numbers == pytest.approx(whole.losses[step], rel=TOLERANCE)


def test_a_run_evaluates_and_generates_in_its_own_mode(finished, tmp_path):
    run = finished.copy("run", tmp_path / "run")
    recipe = run.path / "recipe.yaml"
    expected = finished("eval", "run", "--json").stdout
    recipe.write_text(recipe.read_text().replace("mode: graph", "mode: pynative"))
    done = finished("eval", run.path, "--json")
    assert done.returncode == 0 and "compiling" not in done.stderr, done.stderr
    assert done.stdout == expected
