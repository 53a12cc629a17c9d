"""A Hugging Face folder that is nearly right becomes a run, or nothing is left of the attempt."""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from damage import damaged, damaged_bytes, outcome, text_of
from mindmodel.convert.hf import to_hf
from runs import make_run


@pytest.fixture(scope="module")
def hf():
    with tempfile.TemporaryDirectory() as path:
        run = make_run(Path(path) / "run")
        to_hf(run.path, Path(path) / "hf", max_shard_bytes=20_000)
        yield Path(path) / "hf"


def taken(hf: Path, name: str, content: bytes) -> None:
    """Imported with one file that holds something else."""
    path, run = hf / name, hf.parent / "imported"
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        code, _ = outcome("convert", "from-hf", hf, run)
        assert run.exists() == (code == 0)
        assert code != 0 or outcome("convert", "check", run, hf)[0] in (0, 1)
        assert {left.name for left in hf.parent.iterdir()} <= {"run", "hf", "imported"}
    finally:
        path.write_bytes(whole)
        shutil.rmtree(run, ignore_errors=True)


@given(data=st.data(), name=st.sampled_from(["config.json", "model.safetensors.index.json", "tokenizer_config.json"]))
def test_values(hf, data, name):
    taken(hf, name, text_of(data.draw(damaged(json.loads((hf / name).read_text())))).encode())


@given(data=st.data())
def test_header_of_safetensors(hf, data):
    name = data.draw(st.sampled_from(sorted(path.name for path in hf.glob("*.safetensors"))))
    content = (hf / name).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = text_of(data.draw(damaged(json.loads(content[8:8 + length])))).encode()
    taken(hf, name, struct.pack("<Q", len(header)) + header + content[8 + length:])


@given(data=st.data())
def test_bytes_of_any_file(hf, data):
    name = data.draw(st.sampled_from(sorted(path.name for path in hf.iterdir())))
    taken(hf, name, data.draw(damaged_bytes((hf / name).read_bytes())))
