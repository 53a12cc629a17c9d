"""index.json says what a checkpoint holds, and an index that cannot be true is refused."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from mindmodel.checkpoint.index import FileEntry, Index, Slice, TensorEntry
from mindmodel.errors import CheckpointError

WHERE = Path("step_3/index.json")
HALVES = (
    Slice(file="a.safetensors", offset=(0, 0), shape=(2, 3)),
    Slice(file="b.safetensors", offset=(2, 0), shape=(2, 3)),
)
INDEX = Index(
    step=3,
    samples=24,
    tokens=1536,
    layout={"dp": 2, "tp": 1, "pp": 1, "cp": 1},
    recipe={"name": "tiny", "optim": {"peak_lr": 3e-4}},
    versions={"mindmodel": "0.1.0"},
    random={"seed": 1},
    files={name: FileEntry(bytes=100, sha256="0" * 64) for name in ("a.safetensors", "b.safetensors")},
    tensors={"w": TensorEntry(shape=(4, 3), dtype="float32", slices=HALVES)},
)


def with_slices(*slices, **changes):
    """The index with other slices of its tensor."""
    return dataclasses.replace(INDEX, tensors={"w": dataclasses.replace(INDEX.tensors["w"], slices=slices, **changes)})


def read(index):
    return Index.from_json(json.loads(index.to_json()), WHERE)


def edited(edit):
    """The JSON of the index, edited before its checksum was made."""
    content = json.loads(INDEX.to_json())
    edit(content)
    del content["sha256"]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return {**content, "sha256": hashlib.sha256(canonical.encode()).hexdigest()}


def test_an_index_comes_back_from_its_json():
    assert read(INDEX) == INDEX


def test_the_json_has_the_documented_form():
    content = json.loads(INDEX.to_json())
    assert content["format"] == "mindmodel-checkpoint-1"
    assert content["files"]["a.safetensors"] == {"bytes": 100, "sha256": "0" * 64}
    assert content["tensors"]["w"] == {
        "shape": [4, 3],
        "dtype": "float32",
        "slices": [
            {"file": "a.safetensors", "offset": [0, 0], "shape": [2, 3]},
            {"file": "b.safetensors", "offset": [2, 0], "shape": [2, 3]},
        ],
    }


def test_a_slice_has_the_checksum_of_its_numbers():
    signed = [dataclasses.replace(half, sha256="1" * 64) for half in HALVES]
    index = dataclasses.replace(with_slices(*signed), files={name: FileEntry(bytes=1) for name in INDEX.files})
    content = json.loads(index.to_json())
    assert content["files"]["a.safetensors"] == {"bytes": 1}
    assert content["tensors"]["w"]["slices"][0]["sha256"] == "1" * 64
    assert read(index) == index


def test_a_tensor_stands_on_a_line():
    lines = INDEX.to_json().splitlines()
    assert sum(line.startswith(' "w": {"shape": [4, 3]') for line in lines) == 1


def test_a_scalar_has_an_empty_shape():
    scalar = TensorEntry(shape=(), dtype="float32", slices=(Slice(file="a.safetensors", offset=(), shape=()),))
    index = dataclasses.replace(INDEX, tensors={"beta1_power": scalar})
    assert read(index) == index


@pytest.mark.parametrize("unknown", ["mindmodel-checkpoint-2", None, 1])
def test_another_format_is_refused(unknown):
    with pytest.raises(CheckpointError, match=f"step_3/index.json: format {unknown!r}; this version .* reads"):
        Index.from_json({"format": unknown}, WHERE)


@pytest.mark.parametrize("key, value", [("step", 4), ("samples", 0), ("random", {"seed": 2}), ("new", 1)])
def test_altered_content_is_refused(key, value):
    with pytest.raises(CheckpointError, match="altered since it was written"):
        Index.from_json({**json.loads(INDEX.to_json()), key: value}, WHERE)


def test_an_index_without_checksum_is_refused():
    content = json.loads(INDEX.to_json())
    del content["sha256"]
    with pytest.raises(CheckpointError, match="altered since it was written"):
        Index.from_json(content, WHERE)


@pytest.mark.parametrize(
    "edit, fault",
    [
        (lambda content: content.pop("samples"), "KeyError.*samples"),
        (lambda content: content.update(step=-1), "-1 is no count"),
        (lambda content: content.update(step=True), "True is no count"),
        (lambda content: content.update(step=1.5), "1.5 is no count"),
        (lambda content: content.update(files=[]), "wrong kind"),
        (lambda content: content.update(layout={"dp": "2"}), "'2' is no count"),
        (lambda content: content.update(versions={"mindmodel": 1}), "1 is no text"),
        (lambda content: content.update(recipe=3), "wrong kind"),
        (lambda content: content["tensors"].update(w=None), "wrong kind"),
        (lambda content: content["tensors"]["w"].update(shape=["4", 3]), "'4' is no count"),
    ],
)
def test_a_part_that_is_missing_or_ill_typed_is_named(edit, fault):
    with pytest.raises(CheckpointError, match=f"index.json: a part is missing or of the .*{fault}"):
        Index.from_json(edited(edit), WHERE)


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", ""])
def test_a_file_name_that_leaves_the_folder_is_refused(name):
    index = dataclasses.replace(INDEX, files={**INDEX.files, name: FileEntry(bytes=1, sha256="0")})
    with pytest.raises(CheckpointError, match="leads out of the checkpoint's folder"):
        read(index)


@pytest.mark.parametrize(
    "index, fault",
    [
        (with_slices(*HALVES, dtype="float8"), "tensor 'w': dtype 'float8' is unknown"),
        (with_slices(), "tensor 'w': it has no slice"),
        (with_slices(HALVES[0]), "tensor 'w': its slices leave a gap"),
        (with_slices(HALVES[0], HALVES[0]), "two slices overlap"),
        (
            with_slices(HALVES[0], dataclasses.replace(HALVES[1], file="c")),
            "its slice is in 'c', which is not a file of the checkpoint",
        ),
        (
            with_slices(HALVES[0], dataclasses.replace(HALVES[1], offset=(3, 0))),
            r"the slice of shape \(2, 3\) at \(3, 0\) does not lie inside \(4, 3\)",
        ),
        (with_slices(dataclasses.replace(HALVES[0], offset=(0,), shape=(4,))), "does not lie inside"),
        (with_slices(HALVES[0], dataclasses.replace(HALVES[1], file="a.safetensors")), "two of its slices are in one"),
        (
            dataclasses.replace(INDEX, files={name: FileEntry(bytes=1) for name in INDEX.files}),
            "its slice in 'a.safetensors' has no checksum",
        ),
    ],
)
def test_slices_that_do_not_make_up_the_tensor_are_refused(index, fault):
    with pytest.raises(CheckpointError, match=fault):
        read(index)
