"""safetensors files: ours are read by the reference library, its files by us, and damage is never read as numbers."""

import errno
import hashlib
import json
import os
from contextlib import nullcontext

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from mindmodel import tensor_file
from mindmodel.errors import CheckpointError, ConversionError
from mindmodel.tensor_file import LazyTensor, TensorFile, write_tensors

FLOATS = np.arange(6, dtype=np.float32).reshape(2, 3)


def write_raw(path, header, data=b""):
    """A file with a header of our choosing."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_the_reference_library_reads_our_file(tmp_path):
    tensors = {"a": FLOATS, "b": np.array(7, np.int64), "c": np.zeros((0, 4), np.float16), "d": np.array([True, False])}
    write_tensors(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    read = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    assert {name: (a.shape, a.dtype, a.tobytes()) for name, a in read.items()} == {
        name: (a.shape, a.dtype, a.tobytes()) for name, a in tensors.items()
    }
    with safetensors.safe_open(tmp_path / "x.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_torch_reads_our_bfloat16(tmp_path):
    write_tensors(tmp_path / "x.safetensors", {"odd": np.ones(3, np.int8), "a": FLOATS.astype(ml_dtypes.bfloat16)})
    read = safetensors.torch.load_file(tmp_path / "x.safetensors")["a"]
    assert read.dtype == torch.bfloat16 and torch.equal(read.float(), torch.from_numpy(FLOATS))


def test_we_read_the_bfloat16_of_torch(tmp_path):
    source = torch.randn(5, 7, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    safetensors.torch.save_file({"a": source, "b": torch.ones(2)}, tmp_path / "x.safetensors", {"format": "pt"})
    file = TensorFile(tmp_path / "x.safetensors")
    assert file.metadata == {"format": "pt"} and sorted(file.names) == ["a", "b"]
    assert file.dtype("a") == ml_dtypes.bfloat16 and file.shape("a") == (5, 7)
    np.testing.assert_array_equal(file.array("a").view(np.int16), source.view(torch.int16).numpy())


def test_the_bytes_are_those_of_the_file_and_the_checksums_those_of_the_numbers(tmp_path):
    path = tmp_path / "x.safetensors"
    written = write_tensors(path, {"a": FLOATS, "b": np.ones(2)})
    assert written.num_bytes == path.stat().st_size
    assert written.sha256 == {
        name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in (("a", FLOATS), ("b", np.ones(2)))
    }
    assert TensorFile(path).sha256("a") == written.sha256["a"]


def test_a_file_that_must_be_new_is_not_written_over(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": FLOATS}, new=True)
    with pytest.raises(FileExistsError):
        write_tensors(path, {"a": FLOATS}, new=True)


def test_arrays_are_read_only_views(tmp_path):
    write_tensors(tmp_path / "x.safetensors", {"a": FLOATS})
    array = TensorFile(tmp_path / "x.safetensors").array("a")
    assert not array.flags.writeable and not array.flags.owndata


def test_lazy_tensors_are_made_one_at_a_time_and_only_when_written(tmp_path):
    made = []

    def make(name):
        made.append(name)
        return FLOATS

    tensors = {n: LazyTensor(shape=(2, 3), dtype=FLOATS.dtype, read=lambda n=n: make(n)) for n in ("b", "a")}
    assert made == []
    write_tensors(tmp_path / "x.safetensors", tensors)
    assert made == ["b", "a"]


def test_a_lazy_tensor_must_keep_its_word(tmp_path):
    liar = LazyTensor(shape=(3, 2), dtype=FLOATS.dtype, read=lambda: FLOATS)
    with pytest.raises(ValueError, match=r"\(3, 2\) float32 was announced, \(2, 3\) float32 was read"):
        write_tensors(tmp_path / "x.safetensors", {"a": liar})


def test_wide_dtypes_come_first_so_that_all_are_aligned(tmp_path):
    tensors = {"byte": np.ones(3, np.int8), "wide": np.ones(2), "half": np.ones(1, np.float16)}
    write_tensors(tmp_path / "x.safetensors", tensors)
    file = TensorFile(tmp_path / "x.safetensors")
    assert file.names == ["wide", "half", "byte"] and all(file.array(n).flags.aligned for n in file.names)


@pytest.mark.parametrize("kept", [0, 7, 8, 40, -1])
def test_a_truncated_file_is_refused(tmp_path, kept):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": FLOATS})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="x.safetensors: no whole safetensors file: .* Copy or write it again"):
        TensorFile(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="none.safetensors: there is no such file"):
        TensorFile(tmp_path / "none.safetensors")


def test_the_caller_chooses_the_error(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    with pytest.raises(ConversionError, match="shorter than the length field"):
        TensorFile(tmp_path / "x", ConversionError)


@pytest.mark.parametrize(
    "header, data, fault",
    [
        (b"{no json", b"", "the header is not JSON"),
        (b"\xff\xff", b"", "the header is not JSON"),
        (b"[" * 100_000, b"", "the header is not JSON"),
        ([], b"", "not an object of tensors"),
        ({"__metadata__": {"format": 1}}, b"", "text metadata"),
        ({"a": {"dtype": "F32"}}, b"", "'a' needs dtype, shape and data_offsets"),
        ({"a": entry([1], 0, 4, "F8")}, b"1234", "'a' has dtype 'F8', known are F64, F32"),
        ({"a": entry([1], 0, 4, ["F32"])}, b"1234", "'a' has dtype"),
        ({"a": entry([-1], 0, 4)}, b"1234", r"'a' has shape \[-1\]"),
        ({"a": entry([True], 0, 4)}, b"1234", r"'a' has shape \[True\]"),
        ({"a": entry([0, 2**62], 0, 0)}, b"", "'a' has shape"),
        ({"a": entry([1] * 40, 0, 4)}, b"1234", "'a' has shape"),
        ({"a": entry([1], -4, 0)}, b"1234", r"offsets \[-4, 0\]"),
        ({"a": entry([2], 0, 4)}, b"1234", r"'a' of shape \[2\] and dtype F32 cannot fill bytes 0 to 4"),
        ({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"1234", "'b' begins at byte 0 .* ends at 4"),
        ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, b"123456789abc", "'b' begins at byte 8 .* ends at 4"),
        ({"a": entry([2], 0, 8)}, b"1234", "bytes are described, the file has"),
        ({"a": entry([1], 0, 4)}, b"123456", "bytes are described, the file has"),
    ],
)
def test_a_header_that_does_not_describe_the_file_is_refused(tmp_path, header, data, fault):
    with pytest.raises(CheckpointError, match=fault):
        TensorFile(write_raw(tmp_path / "x", header, data))


def test_a_header_longer_than_the_file_is_refused_unread(tmp_path):
    (tmp_path / "x").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match=f"a header of {2**62} bytes is announced in a file of 10"):
        TensorFile(tmp_path / "x")


ROWS = np.arange(24, dtype=np.int16).reshape(6, 4)


@pytest.fixture
def three(tmp_path):
    tensors = {"before": np.ones(3, np.int16), "w": ROWS, "empty": np.zeros((0, 4), np.int16), "scalar": np.int16(7)}
    write_tensors(tmp_path / "a", {name: np.asarray(array) for name, array in tensors.items()})
    return TensorFile(tmp_path / "a")


def test_a_checksum_is_that_of_all_pieces_that_are_read(three, monkeypatch):
    monkeypatch.setattr(tensor_file, "CHUNK_BYTES", 10)
    assert three.sha256("w") == hashlib.sha256(ROWS.tobytes()).hexdigest()
    assert three.sha256("empty") == hashlib.sha256().hexdigest()


@pytest.mark.parametrize(
    "name, rows, expected",
    [
        ("w", None, ROWS),
        ("w", slice(2, 5), ROWS[2:5]),
        ("empty", None, ROWS[:0]),
        ("empty", slice(0, 0), ROWS[:0]),
        ("scalar", None, np.int16(7)),
    ],
)
def test_the_bytes_of_a_tensor_or_of_some_rows_are_fetched(three, tmp_path, monkeypatch, name, rows, expected):
    monkeypatch.setattr(os, "devnull", str(tmp_path / "sent"))
    three.fetch(name, rows)
    assert (tmp_path / "sent").read_bytes() == expected.tobytes()


@pytest.mark.parametrize("number, told", [(errno.EINVAL, None), (errno.EIO, "Input/output error")])
def test_a_disk_that_fails_is_told_and_a_system_that_cannot_fetch_is_not(three, monkeypatch, number, told):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "sendfile", fail)
    with pytest.raises(OSError, match=told) if told else nullcontext():
        three.fetch("w")


@pytest.mark.parametrize("read", [TensorFile.sha256, TensorFile.fetch])
def test_a_file_that_becomes_shorter_is_named(tmp_path, read):
    write_tensors(tmp_path / "a", {"w": np.zeros(9)})
    file = TensorFile(tmp_path / "a")
    os.truncate(tmp_path / "a", 80)
    with pytest.raises(CheckpointError, match="no whole safetensors file: it became shorter while it was read"):
        read(file, "w")
