"""A checkpoint that is nearly right is named, or holds what was saved."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from damage import damaged, damaged_bytes, files_in, outcome, text_of
from mindmodel.checkpoint import index as indexes
from mindmodel.checkpoint.index import INDEX_NAME
from runs import make_run


@pytest.fixture(scope="module")
def run():
    with tempfile.TemporaryDirectory() as path:
        yield make_run(Path(path) / "run")


def looked_at(run, name: str, content: bytes) -> None:
    """Every verb that reads it, with one file that holds something else; what is exported is what was saved."""
    path = run.checkpoints / "step_10" / name
    whole = path.read_bytes()
    path.write_bytes(content)
    target = run.path / "exported.safetensors"
    try:
        before = files_in(run.path)
        verified, _ = outcome("checkpoint", "verify", run.path)
        outcome("checkpoint", "inspect", run.path, "--json")
        exported, _ = outcome("checkpoint", "export", run.path, target)
        assert target.exists() == (exported == 0) and (verified == 0 or exported != 0)
        target.unlink(missing_ok=True)
        converted, _ = outcome("convert", "to-hf", run.path, run.path / "hf")
        assert (run.path / "hf").exists() == (converted == 0)
        shutil.rmtree(run.path / "hf", ignore_errors=True)
        assert files_in(run.path) == before
    finally:
        path.write_bytes(whole)


@given(data=st.data())
def test_index(run, data):
    """Changed by one who knows how to make its checksum."""
    index = json.loads((run.checkpoints / "step_10" / INDEX_NAME).read_text())
    changed = data.draw(damaged({name: value for name, value in index.items() if name != "sha256"}))
    looked_at(run, INDEX_NAME, text_of({**changed, "sha256": indexes._checksum(changed)}).encode())


@given(data=st.data())
def test_bytes_of_any_file(run, data):
    folder = run.checkpoints / "step_10"
    name = data.draw(st.sampled_from(sorted(path.name for path in folder.iterdir())))
    looked_at(run, name, data.draw(damaged_bytes((folder / name).read_bytes())))
