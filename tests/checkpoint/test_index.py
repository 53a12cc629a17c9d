"""index.json and its table say what a checkpoint holds, and an index that cannot be true is refused."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from mindmodel.checkpoint.index import Index, TensorEntry
from mindmodel.checkpoint.slices import Slice, Slices, Table
from mindmodel.errors import CheckpointError
from mindmodel.tensor_file import write_tensors

SHA = "1" * 64
HALVES = (
    Slice(file="a.safetensors", offset=(0, 0), shape=(2, 3), sha256="0" * 64),
    Slice(file="b.safetensors", offset=(2, 0), shape=(2, 3), sha256=SHA),
)
WHOLE = Slice(file="b.safetensors", offset=(0,), shape=(5,), sha256=SHA)
INDEX = Index(
    step=3,
    samples=24,
    tokens=1536,
    layout={"dp": 2, "tp": 1, "pp": 1, "cp": 1},
    recipe={"name": "tiny", "optim": {"peak_lr": 3e-4}},
    versions={"mindmodel": "0.1.0"},
    random={"seed": 1},
    files={"a.safetensors": 100, "b.safetensors": 200},
    tensors={
        "norm": TensorEntry(shape=(5,), dtype="bfloat16", slices=Slices.of(WHOLE)),
        "w": TensorEntry(shape=(4, 3), dtype="float32", slices=Slices.of(*HALVES)),
    },
)


def with_slices(*slices, **changes):
    """The index with other slices of its cut tensor."""
    entry = dataclasses.replace(INDEX.tensors["w"], slices=Slices.of(*slices), **changes)
    return dataclasses.replace(INDEX, tensors={**INDEX.tensors, "w": entry})


def content_of(folder):
    return json.loads((folder / "index.json").read_text())


def rewrite(folder, edit):
    """Edit index.json and give it the checksum that belongs to it."""
    content = content_of(folder)
    edit(content)
    del content["sha256"]
    sha256 = hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()
    (folder / "index.json").write_text(json.dumps({**content, "sha256": sha256}))


def rewrite_table(folder, **columns):
    """Change columns of the table, and what index.json says of it."""
    table = Table.of([(1, 0, HALVES[0], SHA), (1, 1, HALVES[1], SHA)])
    write_tensors(folder / "slices.safetensors", {**vars(table), **columns})
    sha256 = hashlib.sha256((folder / "slices.safetensors").read_bytes()).hexdigest()
    rewrite(folder, lambda content: content["slices"].update(sha256=sha256))


@pytest.fixture
def folder(tmp_path):
    """With the index in it."""
    INDEX.write(tmp_path)
    return tmp_path


def test_an_index_is_read_as_it_was_written(folder):
    assert Index.read(folder) == INDEX
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", "slices.safetensors"]


def test_a_run_whose_tensors_are_not_cut_has_no_table(tmp_path):
    index = dataclasses.replace(INDEX, tensors={"norm": INDEX.tensors["norm"]})
    index.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]
    assert Index.read(tmp_path) == index


def test_the_json_has_the_documented_form(folder):
    content = content_of(folder)
    assert content["format"] == "mindmodel-checkpoint-2"
    assert content["files"] == {"a.safetensors": 100, "b.safetensors": 200}
    assert content["tensors"] == {
        "norm": {"shape": [5], "dtype": "bfloat16", "file": "b.safetensors", "sha256": SHA},
        "w": {"shape": [4, 3], "dtype": "float32", "slices": 2},
    }
    sha256 = hashlib.sha256((folder / "slices.safetensors").read_bytes()).hexdigest()
    assert content["slices"] == {"file": "slices.safetensors", "sha256": sha256}


def test_a_tensor_stands_on_a_line(folder):
    lines = (folder / "index.json").read_text().splitlines()
    assert sum(line.startswith(' "w": {"shape": [4, 3]') for line in lines) == 1


def test_a_scalar_has_an_empty_shape(tmp_path):
    scalar = Slices.of(Slice(file="a.safetensors", offset=(), shape=(), sha256=SHA))
    index = dataclasses.replace(INDEX, tensors={"beta1_power": TensorEntry(shape=(), dtype="float32", slices=scalar)})
    index.write(tmp_path)
    assert Index.read(tmp_path) == index


def test_tensors_of_different_dims_share_the_table(tmp_path):
    lines = [
        Slice(file="a.safetensors", offset=(0,), shape=(2,), sha256=SHA),
        Slice(file="b.safetensors", offset=(2,), shape=(3,), sha256="2" * 64),
    ]
    bias = TensorEntry(shape=(5,), dtype="float32", slices=Slices.of(*lines))
    index = dataclasses.replace(INDEX, tensors={"bias": bias, **INDEX.tensors})
    index.write(tmp_path)
    assert Index.read(tmp_path) == index


@pytest.mark.parametrize("unknown", ["mindmodel-checkpoint-1", None, 1])
def test_another_format_is_refused(folder, unknown):
    rewrite(folder, lambda content: content.update(format=unknown))
    with pytest.raises(CheckpointError, match=f"index.json: format {unknown!r}; this version .* reads"):
        Index.read(folder)


@pytest.mark.parametrize("key, value", [("step", 4), ("samples", 0), ("random", {"seed": 2}), ("new", 1)])
def test_altered_content_is_refused(folder, key, value):
    (folder / "index.json").write_text(json.dumps({**content_of(folder), key: value}))
    with pytest.raises(CheckpointError, match="altered since it was written"):
        Index.read(folder)


def test_another_order_is_refused_for_the_table_counts_by_it(folder):
    content = content_of(folder)
    content["files"] = dict(reversed(content["files"].items()))
    (folder / "index.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="altered since it was written"):
        Index.read(folder)


def test_an_index_without_checksum_is_refused(folder):
    content = content_of(folder)
    del content["sha256"]
    (folder / "index.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="altered since it was written"):
        Index.read(folder)


@pytest.mark.parametrize(
    "edit, fault",
    [
        (lambda content: content.pop("samples"), "KeyError.*samples"),
        (lambda content: content.update(step=-1), "-1 is no count"),
        (lambda content: content.update(step=True), "True is no count"),
        (lambda content: content.update(step=1.5), "1.5 is no count"),
        (lambda content: content.update(step=2**63), "9223372036854775808 is no count"),
        (lambda content: content.update(files=[]), "wrong kind"),
        (lambda content: content.update(layout={"dp": "2"}), "'2' is no count"),
        (lambda content: content.update(versions={"mindmodel": 1}), "1 is no text"),
        (lambda content: content.update(recipe=3), "wrong kind"),
        (lambda content: content["tensors"].update(w=None), "wrong kind"),
        (lambda content: content["tensors"]["w"].update(shape=["4", 3]), "'4' is no count"),
        (lambda content: content["tensors"]["w"].update(slices=3), "the table of 2 slices is not that of 3 in these"),
        (lambda content: content.pop("slices"), "the table of 0 slices is not that of 2 in these tensors"),
        (lambda content: content["tensors"]["norm"].update(file="c"), "'c' is not a file of the checkpoint"),
        (lambda content: content["tensors"]["norm"].update(sha256="12"), "wrong kind"),
        (lambda content: content["tensors"]["norm"].pop("sha256"), "KeyError.*sha256"),
    ],
)
def test_a_part_that_is_missing_or_ill_typed_is_named(folder, edit, fault):
    rewrite(folder, edit)
    with pytest.raises(CheckpointError, match=f"index.json: a part is missing or of the .*{fault}"):
        Index.read(folder)


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", ""])
def test_a_file_name_that_leaves_the_folder_is_refused(folder, name):
    rewrite(folder, lambda content: content["files"].update({name: 1}))
    with pytest.raises(CheckpointError, match="leads out of the checkpoint's folder"):
        Index.read(folder)


def test_a_table_outside_of_the_folder_is_refused(folder):
    rewrite(folder, lambda content: content["slices"].update(file="../slices.safetensors"))
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        Index.read(folder)


def test_a_missing_table_is_named(folder):
    (folder / "slices.safetensors").unlink()
    with pytest.raises(CheckpointError, match="'slices.safetensors' is missing"):
        Index.read(folder)


def test_a_flipped_bit_of_the_table_is_found(folder):
    content = bytearray((folder / "slices.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "slices.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="slices.safetensors: damaged: SHA-256 .*, the index says"):
        Index.read(folder)


@pytest.mark.parametrize(
    "columns, fault",
    [
        ({"more": np.zeros(2)}, r"slices.safetensors: not a table of slices: it has \{.*more"),
        ({"file": np.zeros(2, np.int64)}, "not a table of slices: .*'file': .'int64'"),
        ({"sha256": np.zeros((2, 31), np.uint8)}, "not a table of slices"),
        ({"shape": np.zeros((2, 3), np.int64)}, "not a table of slices"),
        ({"file": np.array([0, 2], np.int32)}, "the table names file 2 of 2"),
        ({"file": np.array([-1, 0], np.int32)}, "the table names file -1 of 2"),
        ({"tensor": np.array([0, 1], np.int32)}, "the table of 2 slices is not that of 2 in these tensors"),
    ],
)
def test_a_table_of_another_form_is_refused(folder, columns, fault):
    rewrite_table(folder, **columns)
    with pytest.raises(CheckpointError, match=fault):
        Index.read(folder)


def moved(part, **changes):
    return dataclasses.replace(part, **changes)


@pytest.mark.parametrize(
    "index, fault",
    [
        (with_slices(*HALVES, dtype="float8"), "tensor 'w': dtype 'float8' is unknown"),
        (with_slices(), "tensor 'w': it has no slice"),
        (with_slices(*HALVES, shape=(4, 6)), "tensor 'w': its slices leave a gap"),
        (with_slices(HALVES[0], moved(HALVES[1], offset=(1, 0))), "two slices overlap"),
        (
            with_slices(HALVES[0], moved(HALVES[1], offset=(3, 0))),
            r"the slice of shape \(2, 3\) at \(3, 0\) does not lie inside \(4, 3\)",
        ),
        (with_slices(moved(HALVES[0], offset=(-1, 0)), HALVES[1]), r"at \(-1, 0\) does not lie inside"),
        (with_slices(*HALVES, shape=(4,)), "a slice of 2 dims is one of a tensor of 1"),
        (with_slices(HALVES[0], moved(HALVES[1], file="a.safetensors")), "two of its slices are in one"),
    ],
)
def test_slices_that_do_not_make_up_the_tensor_are_refused(tmp_path, index, fault):
    index.write(tmp_path)
    with pytest.raises(CheckpointError, match=fault):
        Index.read(tmp_path)


def test_a_checkpoint_without_a_tensor_has_an_index(tmp_path):
    index = dataclasses.replace(INDEX, tensors={})
    index.write(tmp_path)
    assert Index.read(tmp_path) == index
