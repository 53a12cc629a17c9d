"""One measurement of a checkpoint benchmark, in a process of its own: `python -m bench.checkpoint METHOD FOLDER BYTES`.

Prints a JSON object: seconds; of what is read also warm_seconds, when it is read again; and the bytes by which the peak
of memory is above that of the tensors. Pages of a file that is mapped count, though they are the kernel's to take back.
What is written goes into new files and is synced; then it replaces what the method wrote before, so that all find the
disk alike. What is read ends up in arrays that are there.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Callable

import numpy as np
from bench.child import memory_bytes, reset_peak

from mindmodel.checkpoint.background import HostMemory
from mindmodel.checkpoint.load import open_checkpoint
from mindmodel.checkpoint.part import Crew, plan_part
from mindmodel.checkpoint.save import save_checkpoint
from mindmodel.checkpoint.tensors import in_turn

COLUMNS, TENSOR_BYTES, CHUNK_BYTES = 1024, 32 * 2**20, 16 * 2**20
FACTS = {"step": 1, "samples": 0, "tokens": 0, "recipe": {}, "versions": {}, "random": {}, "layout": {}}
Arrays = dict[str, np.ndarray]
Measured = Callable[[], None]


def arrays_of(num_bytes: int) -> Arrays:
    """Float32 tensors, each another, that make up so many bytes."""
    tensor = np.random.default_rng(0).random((TENSOR_BYTES // (4 * COLUMNS), COLUMNS), np.float32)
    count = max(1, num_bytes // TENSOR_BYTES)
    return {f"layers.{index}.weight": tensor + np.float32(index) for index in range(count)}


def synced(path: Path) -> None:
    """To the disk: what others write they leave in the cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def write_sequential(folder: Path, arrays: Arrays) -> Measured:
    """As `dd conv=fsync`."""

    def work() -> None:
        with open(folder / "file", "wb", buffering=0) as file:
            for array in arrays.values():
                numbers = array.reshape(-1).view(np.uint8).data
                for start in range(0, len(numbers), CHUNK_BYTES):
                    file.write(numbers[start : start + CHUNK_BYTES])
            os.fsync(file.fileno())

    return work


def write_mindmodel(folder: Path, arrays: Arrays) -> Measured:
    def work() -> None:
        save_checkpoint(folder, weights=arrays, optimizer={}, keep=1, keep_every=0, **FACTS)

    return work


def write_mindspore(folder: Path, arrays: Arrays) -> Measured:
    import mindspore

    content = [{"name": name, "data": mindspore.Tensor(array)} for name, array in arrays.items()]

    def work() -> None:
        mindspore.save_checkpoint(content, str(folder / "file"), format="safetensors")
        synced(folder / "file.safetensors")

    return work


def write_safetensors(folder: Path, arrays: Arrays) -> Measured:
    import torch
    from safetensors.torch import save_file

    content = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def work() -> None:
        save_file(content, folder / "file.safetensors")
        synced(folder / "file.safetensors")

    return work


def write_torch(folder: Path, arrays: Arrays) -> Measured:
    import torch

    content = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def work() -> None:
        torch.save(content, folder / "file.pt")
        synced(folder / "file.pt")

    return work


def read_sequential(folder: Path, arrays: Arrays) -> Measured:
    buffer = bytearray(CHUNK_BYTES)

    def work() -> None:
        with open(folder / "file", "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    return work


def read_mindmodel(folder: Path, arrays: Arrays) -> Measured:
    """As a rank does that the first has told which checkpoint is whole: every number is copied out of the map."""

    def work() -> None:
        weights = open_checkpoint(folder / "step_1", verify=False).weights()
        for name, array in in_turn(weights, list(weights)):
            np.copyto(arrays[name], array)

    return work


def read_verified(folder: Path, arrays: Arrays) -> Measured:
    """As the first rank does: all checksums are compared before."""

    def work() -> None:
        weights = open_checkpoint(folder / "step_1").weights()
        for name, array in in_turn(weights, list(weights)):
            np.copyto(arrays[name], array)

    return work


def read_mindspore(folder: Path, arrays: Arrays) -> Measured:
    import mindspore

    def work() -> None:
        path = str(folder / "file.safetensors")
        for name, tensor in mindspore.load_checkpoint(path, format="safetensors").items():
            np.copyto(arrays[name], tensor.asnumpy())

    return work


def read_safetensors(folder: Path, arrays: Arrays) -> Measured:
    from safetensors.torch import load_file

    def work() -> None:
        for name, tensor in load_file(folder / "file.safetensors").items():
            np.copyto(arrays[name], tensor.numpy())

    return work


def read_torch(folder: Path, arrays: Arrays) -> Measured:
    import torch

    def work() -> None:
        for name, tensor in torch.load(folder / "file.pt", weights_only=True).items():
            np.copyto(arrays[name], tensor.numpy())

    return work


def block_copy(folder: Path, arrays: Arrays) -> Measured:
    """A plain copy into memory that is there."""
    kept = {name: np.zeros_like(array) for name, array in arrays.items()}

    def work() -> None:
        for name, array in arrays.items():
            np.copyto(kept[name], array)

    return work


def block_mindmodel(folder: Path, arrays: Arrays) -> Measured:
    """What holds the loop up at every save after the first."""
    memory = HostMemory()

    def work() -> None:
        memory.copy(plan_part({"weights": arrays}, Crew()))

    work()
    return work


METHODS = {
    name: work for name, work in list(globals().items()) if name.partition("_")[0] in ("write", "read", "block")
}


def drop_cache(folder: Path) -> None:
    """Of the kernel's copies of the files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def touch_cache(folder: Path, num_bytes: int) -> None:
    """Have the kernel take memory for its copies of so many bytes and free it: on a virtual machine, memory that nobody
    has used for a while costs more than the writing."""
    zeros, scratch = bytes(CHUNK_BYTES), folder / "scratch"
    with open(scratch, "wb", buffering=0) as file:
        for _ in range(num_bytes // CHUNK_BYTES + 2):
            file.write(zeros)
    scratch.unlink()


def seconds_of(work: Measured) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def measure(method: str, folder: Path, num_bytes: int) -> dict[str, float]:
    """What is printed."""
    kind, _, rival = method.partition("_")
    kept, place = folder / {"verified": "mindmodel"}.get(rival, rival), folder / "new"
    if kind == "write":
        place.mkdir()
    work = METHODS[method](place if kind == "write" else kept, arrays_of(num_bytes))
    os.sync()
    touch_cache(folder, num_bytes)
    if kind == "read":
        drop_cache(kept)
    base_bytes = memory_bytes("VmRSS")
    reset_peak()
    result = {"seconds": seconds_of(work), "peak_bytes": memory_bytes("VmHWM") - base_bytes}
    if kind == "read":
        result["warm_seconds"] = seconds_of(work)
    if kind == "write":
        written = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        assert written >= num_bytes, f"{method} wrote {written} of {num_bytes} bytes"
        shutil.rmtree(kept, ignore_errors=True)
        place.rename(kept)
    return result


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
