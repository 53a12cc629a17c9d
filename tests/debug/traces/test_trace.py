"""The folder of a trace: what goes in comes out, and what is damaged is refused; the places of a model."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest

from made_traces import made_trace
from mindmodel.debug.traces.trace import KINDS, LOGITS, flow, flow_among, places, read_trace, write_trace
from mindmodel.errors import TraceError
from mindmodel.recipe.schema import ModelSection

MODEL = ModelSection(hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, ffn_size=48, vocab_size=300)


@pytest.fixture
def folder(tmp_path):
    """Of a small trace."""
    write_trace(made_trace(), tmp_path / "trace")
    return tmp_path / "trace"


def test_what_was_written_is_read_bit_by_bit_and_in_order(folder):
    wrote, read = made_trace(), read_trace(folder)
    assert (read.source, read.dtype, read.loss, read.grad_norm, read.lr) == ("made", "float32", 2.5, 0.5, 1e-3)
    assert (read.batch.ids == wrote.batch.ids).all() and (read.batch.labels == wrote.batch.labels).all()
    for kind in KINDS:
        assert list(read.tensors[kind]) == list(wrote.tensors[kind])
        assert all((read.tensors[kind][place] == array).all() for place, array in wrote.tensors[kind].items())


def test_bfloat16_stays_bfloat16(tmp_path):
    write_trace(made_trace(dtype="bfloat16"), tmp_path / "trace")
    assert read_trace(tmp_path / "trace").tensors["activation"]["embedding"].dtype == ml_dtypes.bfloat16


def test_a_loss_that_is_no_number_is_kept(tmp_path):
    write_trace(made_trace(loss=float("nan"), grad_norm=float("inf")), tmp_path / "trace")
    read = read_trace(tmp_path / "trace")
    assert np.isnan(read.loss) and read.grad_norm == float("inf")
    assert "NaN" not in (tmp_path / "trace" / "trace.json").read_text()


def test_a_trace_replaces_a_trace_and_nothing_else(folder, tmp_path):
    write_trace(made_trace(loss=3.0), folder)
    assert read_trace(folder).loss == 3.0
    (tmp_path / "thesis").mkdir()
    with pytest.raises(TraceError, match="thesis: exists and is no trace. Choose a new folder."):
        write_trace(made_trace(), tmp_path / "thesis")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis", "trace"]


def change_index(folder, **changes):
    path = folder / "trace.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_trace_of_another_version_is_refused(folder):
    change_index(folder, version=2)
    with pytest.raises(TraceError, match="trace.json: version 2; this mindmodel reads 1. Trace again."):
        read_trace(folder)


@pytest.mark.parametrize("changes", [
    {"tensors": 3}, {"tensors": [{}]}, {"tensors": []}, {"loss": "much"}, {"lr": 10**400}, {"dtype": "int8"},
])
def test_an_index_that_is_none_is_refused(folder, changes):
    change_index(folder, **changes)
    with pytest.raises(TraceError, match="(damaged|other arrays than those).*Trace again"):
        read_trace(folder)


def test_a_file_that_was_cut_is_refused(folder):
    path = folder / "trace.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(TraceError, match=r"trace.safetensors: \d+ bytes, trace.json says \d+. Trace again."):
        read_trace(folder)


def test_a_flipped_bit_is_found(folder):
    path = folder / "trace.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(TraceError, match="is damaged: its checksum is another"):
        read_trace(folder)


def test_a_file_that_is_gone_is_named(folder):
    (folder / "trace.safetensors").unlink()
    with pytest.raises(TraceError, match="'trace.safetensors' is missing"):
        read_trace(folder)


def test_places_are_in_the_order_of_the_forward_pass_and_each_comes_after_its_inputs():
    seen: set[str] = set()
    for place, inputs in flow(2).items():
        assert set(inputs) <= seen
        seen.add(place)
    assert list(flow(2))[0] == "embedding" and list(flow(2))[-2:] == ["norm", LOGITS]


def test_the_deepest_layer_among_some_names_tells_the_flow():
    assert flow_among(["embedding.weight", "layers.1.mlp.down.weight"]) == flow(2)
    assert flow_among(["layers.x.mlp", "layers.99999", "layers.0.attention"]) == flow(1)
    assert flow_among([]) == flow(0)


def test_columns_of_every_place():
    columns = places(MODEL)
    assert len(columns) == 2 * 9 + 3
    assert columns["layers.1.attention.qkv"] == 64 and columns["layers.1.attention.causal_attention"] == 32
    assert columns["layers.0.mlp.gate_up"] == 96 and columns["layers.0.mlp.swiglu"] == 48
    assert columns["layers.0"] == columns["norm"] == 32 and columns[LOGITS] == 300
