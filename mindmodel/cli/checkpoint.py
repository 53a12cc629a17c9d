"""What is in a checkpoint, whether it is whole, what differs between two, and all of it in one file.

examples:
  mindmodel checkpoint inspect runs/tiny
  mindmodel checkpoint verify runs/tiny/checkpoints/step_900
  mindmodel checkpoint diff runs/tiny/checkpoints/step_600 runs/tiny/checkpoints/step_900
  mindmodel checkpoint export runs/tiny tiny.safetensors

A checkpoint is a run folder (its newest whole checkpoint is taken) or one of its checkpoints/step_N folders; `verify`
looks at all checkpoints of a run. Exit code 1: damaged, or the two differ.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Sequence

from mindmodel.checkpoint.compare import checkpoint_differences
from mindmodel.checkpoint.export import export_checkpoint
from mindmodel.checkpoint.index import TensorEntry
from mindmodel.checkpoint.load import Checkpoint, damage_of
from mindmodel.checkpoint.retention import list_checkpoints
from mindmodel.checkpoint.run_folder import is_checkpoint, open_run, resolve_checkpoint
from mindmodel.cli.arguments import add_subcommands
from mindmodel.errors import CheckpointError

SUBCOMMANDS = {
    "inspect": "position, layout, files, and every tensor with its slices",
    "verify": "compare every checksum; exit code 1 if something is damaged",
    "diff": "position, recipe and tensors of two; exit code 1 if they differ",
    "export": "one safetensors file under our own names",
}


def add_arguments(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The subcommands and their arguments."""
    subcommands = add_subcommands(parser, SUBCOMMANDS)
    for name in SUBCOMMANDS:
        subcommands[name].add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="run or checkpoint folder")
    subcommands["inspect"].add_argument("--json", action="store_true", help="one object, every slice with its checksum")
    subcommands["diff"].add_argument("other", metavar="OTHER", type=Path, help="run or checkpoint folder")
    subcommands["export"].add_argument("target", metavar="OUT", type=Path, help="new file, such as weights.safetensors")
    subcommands["export"].add_argument("--optimizer", action="store_true", help="moments and counters too")
    return subcommands


def run(args: argparse.Namespace) -> int:
    """Answer one question; every answer goes to standard output."""
    return {"inspect": _inspect, "verify": _verify, "diff": _diff, "export": _export}[args.subcommand](args)


def _inspect(args: argparse.Namespace) -> int:
    checkpoint = resolve_checkpoint(args.checkpoint, verify=False)
    print(json.dumps(_to_dict(checkpoint)) if args.json else "\n".join(_lines(checkpoint)))
    return 0


def _to_dict(checkpoint: Checkpoint) -> dict[str, object]:
    index = checkpoint.index
    tensors = [{"name": name, **_tensor_to_dict(tensor)} for name, tensor in index.tensors.items()]
    return {
        "path": str(checkpoint.path),
        "step": index.step,
        "samples": index.samples,
        "tokens": index.tokens,
        "layout": dict(index.layout),
        "versions": dict(index.versions),
        "tensors": tensors,
    }


def _tensor_to_dict(tensor: TensorEntry) -> dict[str, object]:
    slices = [
        {"file": part.file, "offset": part.offset, "shape": part.shape, "sha256": part.sha256}
        for part in tensor.slices
    ]
    return {"shape": tensor.shape, "dtype": tensor.dtype, "slices": slices}


def _lines(checkpoint: Checkpoint) -> list[str]:
    index = checkpoint.index
    size = sum(index.files.values())
    width = max(map(len, index.tensors), default=0)
    return [
        f"checkpoint  {checkpoint.path}",
        f"position    step {index.step:,}, {index.samples:,} samples, {index.tokens:,} tokens",
        f"layout      {', '.join(f'{axis} {degree}' for axis, degree in index.layout.items())}",
        f"written by  {', '.join(f'{name} {version}' for name, version in index.versions.items())}",
        f"files       {len(index.files)}, {size:,} bytes",
        f"tensors     {len(index.tensors)}",
        *(
            f"  {name:<{width}}  {tensor.dtype} {list(tensor.shape)} in {len(tensor.slices)}"
            for name, tensor in index.tensors.items()
        ),
    ]


def _verify(args: argparse.Namespace) -> int:
    damaged = 0
    for path in _checkpoints(args.checkpoint):
        checkpoint, faults = damage_of(path)
        for fault in faults:
            print(fault)
        damaged += bool(faults)
        if checkpoint is not None and not faults:
            size = sum(checkpoint.index.files.values())
            print(f"{path}: whole: {len(checkpoint.index.tensors)} tensors, {size:,} bytes compared")
    return 1 if damaged else 0


def _checkpoints(path: Path) -> list[Path]:
    """A checkpoint, or all of a run.

    Raises:
        CheckpointError: if it is neither, or the run has none.
    """
    if is_checkpoint(path):
        return [path]
    folder = open_run(path).checkpoints
    paths = [folder / f"step_{step}" for step in list_checkpoints(folder)]
    if not paths:
        raise CheckpointError(f"{folder}: there is no checkpoint. Train the run until it saves one.")
    return paths


def _diff(args: argparse.Namespace) -> int:
    one, other = resolve_checkpoint(args.checkpoint), resolve_checkpoint(args.other)
    found = list(checkpoint_differences(one, other))
    return print_differences(found, f"{one.path} and {other.path} are the same, bit by bit")


def print_differences(found: Sequence[str], none: str) -> int:
    """A line each and their number, or what to say where there is none; gives the exit code."""
    for line in found:
        print(line)
    print(f"{len(found)} differences" if found else none)
    return 1 if found else 0


def _export(args: argparse.Namespace) -> int:
    checkpoint = resolve_checkpoint(args.checkpoint)
    written = export_checkpoint(checkpoint, args.target, args.optimizer)
    print(f"wrote {args.target}: {len(written.sha256)} tensors, {written.num_bytes:,} bytes, of {checkpoint.path}")
    return 0
