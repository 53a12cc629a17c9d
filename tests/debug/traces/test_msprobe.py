"""Dumps in msprobe's layout: a trace comes back from one as it was, msprobe's own are read, and none is trusted."""

from __future__ import annotations

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest

from made_traces import made_trace
from mindmodel.data.loader import Batch
from mindmodel.debug.traces.compare import compare_traces
from mindmodel.debug.traces.msprobe import ARRAYS, DUMP, STEP, cell_of, find_dump, read_dump, write_dump
from mindmodel.debug.traces.trace import LOGITS, flow
from mindmodel.errors import TraceError

SEQ_LEN = 4


def a_trace(**changes):
    """Some labels do not count, and the norm is that of the gradients, since a dump has none."""
    trace = made_trace(**changes)
    labels = trace.batch.labels.copy()
    labels[1, 2] = -100
    norm = np.sqrt(sum(np.sum(np.square(array)) for array in trace.tensors["weight_grad"].values()))
    return dataclasses.replace(trace, batch=Batch(ids=trace.batch.ids, labels=labels), grad_norm=float(norm))


@pytest.fixture
def dump(tmp_path):
    """The folder of a trace's dump.json."""
    return write_dump(a_trace(), tmp_path / "dump")


def content_of(dump, name=DUMP):
    return json.loads((dump / name).read_text())


def edit(dump, change):
    """Change what dump.json says."""
    content = content_of(dump)
    change(content)
    (dump / DUMP).write_text(json.dumps(content))


def leaf_of(content, entry="Cell.decoder.layers.0.attention.qkv.Linear.forward.0", key="output", index=0):
    return content["data"][entry][key][index]


# There and back


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_trace_comes_back_as_it_was_but_for_new_weights(tmp_path, dtype):
    trace = a_trace(dtype=dtype)
    found = read_dump(write_dump(trace, tmp_path / "dump"), SEQ_LEN)
    np.testing.assert_array_equal(found.batch.ids, trace.batch.ids)
    np.testing.assert_array_equal(found.batch.labels, trace.batch.labels)
    assert found.dtype == dtype and found.tensors["weight"] == {}
    assert found.loss == pytest.approx(trace.loss, rel=1e-6)
    assert found.grad_norm == pytest.approx(trace.grad_norm, rel=1e-6)
    comparison = compare_traces(trace, found)
    assert comparison.first is None and {name.partition("/")[0] for name in comparison.left_out} == {"weight"}
    for place, array in trace.tensors["activation"].items():
        assert found.tensors["activation"][place].tobytes() == array.tobytes()


def test_gradients_are_of_the_sum_of_the_loss_as_a_debugger_sees_them(dump):
    trace, num_labels = a_trace(), 7
    name = "Cell.decoder.layers.0.attention.qkv.Linear.parameters_grad.0"
    array = np.load(dump / ARRAYS / f"{name}.weight.npy")
    wanted = trace.tensors["weight_grad"]["layers.0.attention.qkv.weight"] * num_labels
    np.testing.assert_allclose(array, wanted, rtol=1e-6)
    total = np.load(dump / ARRAYS / "Cell.loss.HeadLoss.forward.0.output.1.npy")
    assert total == pytest.approx(trace.loss * num_labels)


def test_the_gradient_of_what_was_differentiated_sets_the_scale(dump):
    """A loss that was scaled by 1024, or divided by the labels, gives the same trace."""
    for name in (dump / ARRAYS).iterdir():
        if "backward" in name.name or "parameters_grad" in name.name:
            np.save(name, np.load(name) * np.float32(1024))
    assert compare_traces(a_trace(), read_dump(dump, SEQ_LEN)).first is None


def test_files_are_those_of_a_precision_debugger(dump):
    content, construct = content_of(dump), content_of(dump, "construct.json")
    assert (content["task"], content["level"], content["framework"]) == ("tensor", "L0", "mindspore")
    name = "Cell.decoder.layers.0.attention.qkv.Linear.forward.0"
    array = a_trace().tensors["activation"]["layers.0.attention.qkv"]
    assert leaf_of(content) == {
        "type": "mindspore.Tensor", "dtype": "Float32", "shape": [8, 6], "data_name": f"{name}.output.0.npy",
        "Max": pytest.approx(array.max()), "Min": pytest.approx(array.min()),
        "Mean": pytest.approx(array.mean(), abs=1e-7), "Norm": pytest.approx(np.linalg.norm(array)),
    }
    assert construct[name] == "Cell.decoder.layers.0.attention.Attention.forward.0"
    assert construct["Cell.decoder.layers.0.attention.Attention.forward.0"] == "Cell.decoder.layers.0.Block.forward.0"
    assert construct["Cell.decoder.layers.0.Block.forward.0"] is None
    assert content_of(dump, "stack.json")["0"][0] == list(construct)
    order = [name for name in content["data"] if "Block" in name]
    assert order == [f"Cell.decoder.layers.{i}.Block.{what}.0" for what, i in
                     (("forward", 0), ("forward", 1), ("backward", 1), ("backward", 0))]


def test_the_classes_of_our_cells_are_as_they_are_named(runtime, kernels_of, small_recipe):
    from mindmodel.models.decoder import Decoder

    kernels_of("CPU")
    model = dataclasses.replace(small_recipe.model, num_kv_heads=1, head_size=8, qk_norm=True)
    cells = {name: type(cell).__name__ for name, cell in Decoder(model, 8).cells_and_names()}
    for place in (*flow(1), "layers.0.attention", "layers.0.mlp", "layers.0.attention.q_norm"):
        path = "head" if place == LOGITS else place
        assert cell_of(place) == f"Cell.decoder.{path}.{cells[path]}"


def test_a_dump_replaces_a_dump_and_nothing_else(dump, tmp_path):
    write_dump(a_trace(loss=3.0), tmp_path / "dump")
    assert read_dump(dump).loss == pytest.approx(3.0)
    (tmp_path / "thesis").mkdir()
    with pytest.raises(TraceError, match="thesis: exists and is no dump of msprobe's layout. Choose a new folder."):
        write_dump(a_trace(), tmp_path / "thesis")


# As msprobe writes them


def test_cells_around_the_decoder_and_calls_after_the_first_do_not_matter(dump):
    def change(content):
        data = {name.replace("Cell.", "Cell.network.network.", 1): entry for name, entry in content["data"].items()}
        data["Cell.network.network.decoder.norm.RMSNorm.forward.1"] = {"output": [{"data_name": "none.npy"}]}
        data["Mint.add.0.forward"] = {"output": []}
        content["data"] = data

    edit(dump, change)
    assert compare_traces(a_trace(), read_dump(dump, SEQ_LEN)).first is None


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_s_gradient_is_the_loss_s_unless_the_embedding_has_it(dump, tied):
    def change(content):
        weight = {"type": "mindspore.Tensor", "dtype": "Float32", "shape": [3, 2], "data_name": "weight.npy"}
        content["data"]["Cell.decoder.embedding.Embedding.forward.0"]["parameters"] = {"weight": weight}
        head = {**weight, "data_name": "weight.npy" if tied else "head.npy"}
        content["data"]["Cell.loss.HeadLoss.forward.0"]["input_args"][1] = head

    np.save(dump / ARRAYS / "weight.npy", np.ones((3, 2), np.float32))
    np.save(dump / ARRAYS / "head.npy", np.zeros((3, 2), np.float32))
    edit(dump, change)
    assert ("head.weight" in read_dump(dump).tensors["weight_grad"]) == (not tied)


def test_a_dump_is_found_in_its_folder_its_file_and_above(dump, tmp_path):
    for path in (dump, dump / DUMP, tmp_path / "dump", tmp_path / "dump" / "step0"):
        assert find_dump(path) == dump
    assert find_dump(tmp_path / "nothing") is None and find_dump(tmp_path) is None
    (dump.parent / "rank1").mkdir()
    (dump.parent / "rank1" / DUMP).write_text("{}")
    with pytest.raises(TraceError, match=f"holds 2 dumps of msprobe. Name one of them, such as .*{STEP}"):
        find_dump(tmp_path / "dump")


def test_tokens_are_one_sequence_where_nothing_says_more(dump):
    assert read_dump(dump).batch.ids.shape == (1, 8)
    with pytest.raises(TraceError, match="8 tokens and 8 labels are no sequences of 3. Give the recipe"):
        read_dump(dump, 3)


# None is trusted


def test_statistics_alone_are_refused(dump):
    edit(dump, lambda content: content.update(task="statistics"))
    with pytest.raises(TraceError, match="task 'statistics' holds no arrays. Dump with task tensor"):
        read_dump(dump)


@pytest.mark.parametrize("change", [
    lambda content: content.update(data=[]),
    lambda content: content["data"].pop("Cell.loss.HeadLoss.forward.0"),
    lambda content: content["data"].pop("Cell.decoder.embedding.Embedding.forward.0"),
    lambda content: content["data"].update({"Cell.loss.HeadLoss.backward.0": 3}),
    lambda content: content["data"]["Cell.loss.HeadLoss.backward.0"].update(input=[]),
])
def test_a_dump_of_other_cells_or_half_a_step_is_refused(dump, change):
    edit(dump, change)
    with pytest.raises(TraceError, match=r"no \w+ward input\w* (0|2) of a Cell '(loss|embedding)'. It must be a dump"):
        read_dump(dump)


@pytest.mark.parametrize("name", ["../../secret.npy", "/etc/passwd", 7, None])
def test_names_that_lead_out_of_the_folder_are_refused(dump, name):
    np.save(dump / "secret.npy", np.zeros((8, 6), np.float32))
    edit(dump, lambda content: leaf_of(content).update(data_name=name))
    with pytest.raises(TraceError, match="leads out of the folder"):
        read_dump(dump)


def test_a_missing_array_is_named(dump):
    (dump / ARRAYS / "Cell.loss.HeadLoss.forward.0.input.2.npy").unlink()
    with pytest.raises(TraceError, match="'Cell.loss.HeadLoss.forward.0.input.2.npy' is missing"):
        read_dump(dump)


def cut(path):
    path.write_bytes(path.read_bytes()[:-4])


def pickled(path):
    np.save(path, np.array([print, {}], dtype=object), allow_pickle=True)


def zipped(path):
    with open(path, "wb") as file:
        np.savez(file, array=np.zeros((8, 6), np.float32))


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, pickled, zipped, empty])
def test_a_file_that_is_no_whole_array_of_numbers_is_refused(dump, damage):
    damage(dump / ARRAYS / "Cell.decoder.layers.0.attention.qkv.Linear.forward.0.output.0.npy")
    with pytest.raises(TraceError, match="no array that NumPy reads .* Dump again."):
        read_dump(dump)


@pytest.mark.parametrize("array", [np.zeros((6, 8), np.float32), np.zeros((8, 6), np.complex64)])
def test_an_array_that_is_not_what_dump_json_says_is_refused(dump, array):
    np.save(dump / ARRAYS / "Cell.decoder.layers.0.attention.qkv.Linear.forward.0.output.0.npy", array)
    with pytest.raises(TraceError, match=r"(float32\[6, 8\]|complex64\[8, 6\]), and dump.json says Float32 \[8, 6\]"):
        read_dump(dump)


def test_dump_json_that_is_none_is_refused(dump):
    (dump / DUMP).write_text("{")
    with pytest.raises(TraceError, match="dump.json: not JSON"):
        read_dump(dump)


def test_bfloat16_is_kept_as_such(tmp_path):
    found = read_dump(write_dump(a_trace(dtype="bfloat16"), tmp_path / "dump"))
    assert found.tensors["activation"]["embedding"].dtype == ml_dtypes.bfloat16
