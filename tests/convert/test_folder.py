"""A Hugging Face folder is read through its index and trusted in nothing."""

import json

import numpy as np
import pytest

from mindmodel.convert.folder import read_config, read_tensors, write_shards
from mindmodel.errors import ConversionError
from mindmodel.tensor_file import LazyTensor, TensorFile, write_tensors

TENSORS = {f"t{number}": np.full((10, number + 1), number, np.float32) for number in range(4)}  # 40, 80, 120, 160 bytes
LAZY = {n: LazyTensor(shape=a.shape, dtype=a.dtype, read=lambda a=a: a) for n, a in TENSORS.items()}


def edit_index(folder, edit):
    path = folder / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_a_small_model_is_one_file(tmp_path):
    assert write_shards(tmp_path, LAZY, 400) == ["model.safetensors"]
    assert TensorFile(tmp_path / "model.safetensors").metadata == {"format": "pt"}


def test_a_large_model_is_shards_of_the_given_size_and_an_index(tmp_path):
    files = write_shards(tmp_path, LAZY, 150)
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert files == [*names, "model.safetensors.index.json"]
    assert [sorted(TensorFile(tmp_path / name).names) for name in names] == [["t0", "t1"], ["t2"], ["t3"]]
    assert json.loads((tmp_path / files[-1]).read_text()) == {
        "metadata": {"total_size": 400},
        "weight_map": {"t0": names[0], "t1": names[0], "t2": names[1], "t3": names[2]},
    }


@pytest.mark.parametrize("max_bytes", [1, 150, 400])
def test_what_was_written_is_read(tmp_path, max_bytes):
    write_shards(tmp_path, LAZY, max_bytes)
    read = read_tensors(tmp_path)
    assert read.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(read[name].read(), array, strict=True)


def test_pickled_weights_are_refused_unopened(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    with pytest.raises(ConversionError, match="only pickled weights, which can run code .* safe_serialization=True"):
        read_tensors(tmp_path)


def test_a_folder_without_weights_says_what_is_looked_for(tmp_path):
    with pytest.raises(ConversionError, match="holds neither model.safetensors nor model.safetensors.index.json"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd"])
def test_a_shard_outside_the_folder_is_refused(tmp_path, name):
    folder = tmp_path / "hf"
    folder.mkdir()
    write_tensors(tmp_path / "outside.safetensors", TENSORS)
    write_shards(folder, LAZY, 150)
    edit_index(folder, lambda index: index["weight_map"].update(t0=name))
    with pytest.raises(ConversionError, match="leads out of the folder"):
        read_tensors(folder)


def test_a_missing_or_damaged_shard_is_named(tmp_path):
    write_shards(tmp_path, LAZY, 150)
    shard = tmp_path / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ConversionError, match="model-00002-of-00003.safetensors: no whole safetensors file"):
        read_tensors(tmp_path)
    shard.unlink()
    with pytest.raises(ConversionError, match="'model-00002-of-00003.safetensors' is missing"):
        read_tensors(tmp_path)


def test_an_index_and_shards_that_do_not_agree_are_refused(tmp_path):
    write_shards(tmp_path, LAZY, 150)

    def move(index):
        index["weight_map"]["t1"] = "model-00002-of-00003.safetensors"

    edit_index(tmp_path, move)
    with pytest.raises(ConversionError) as caught:
        read_tensors(tmp_path)
    assert str(caught.value).splitlines()[1:] == [
        "  t1 in model-00001-of-00003.safetensors is not in the index",
        "  t1 is not in model-00002-of-00003.safetensors",
    ]


@pytest.mark.parametrize("weight_map", [None, [], {"t0": 1}])
def test_an_index_without_a_map_is_refused(tmp_path, weight_map):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ConversionError, match="weight_map must be a mapping of tensor names to file names"):
        read_tensors(tmp_path)


def test_a_missing_folder_or_configuration_is_named(tmp_path):
    with pytest.raises(ConversionError, match="none: there is no such folder. Give a Hugging Face folder"):
        read_config(tmp_path / "none")
    with pytest.raises(ConversionError, match="holds no config.json, so it is no Hugging Face folder"):
        read_config(tmp_path)
