"""MindSpore's record of device memory in one step: every block, what made and used it, and what is alive at the peak.

Source: memory_block.csv and tracker_graph.ir, which MindSpore 2.9 writes with MS_ALLOC_CONF=memory_tracker:True.
"""

from __future__ import annotations

import csv
import itertools
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Iterator, Mapping

from mindmodel.dryrun.scopes import is_update, operator_of

BLOCKS_NAME, GRAPH_NAME = "memory_block.csv", "tracker_graph.ir"
TASK = re.compile(r"\((.*?)\) = (.+?)\((.*?)\), task_info: (\d+)")
KEY, TENSOR = re.compile(r"%(\d+)"), re.compile(r"(\w+):\[([\d, ]*)\]")

LIVE_KINDS = ("weights", "optimizer", "constants", "weight copies", "gradients", "activations", "logits", "other")
"""What memory is for: what stays through all steps first."""
COARSER = {"weight copies": "weights", "constants": "other"}
"""The closed form's name for kinds that it does not tell apart."""
PREFIXES = {"first_moment.": "optimizer", "second_moment.": "optimizer", "accu_grads.": "gradients"}
NO_KERNEL = ("StreamSend", "StreamRecv", "Reshape", "ExpandDims", "Squeeze")
"""Events between streams, and views of a tensor."""
COPIES = ("Cast", "AllGather", "TensorMove", "Load")
"""Operators whose result is a weight when their operand is one: in another dtype, or gathered."""
GRADIENT_STEPS = (*COPIES, "AllReduce", "ReduceScatter", "AssignAdd", "Add", "AddN", "Mul", "Muls", "Div", "RealDiv")
"""Operators between the product that makes a weight's gradient and the optimizer."""


DtypeAndShape = tuple[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Block:
    """A piece of device memory.

    Attributes:
        key: when it was taken; also its name in the graph.
        end: when it was given back.
        source: Weight, ConstantValue or Kernel.
        name: of the parameter, or of the operator with its scope.
    """

    key: int
    end: int
    num_bytes: int
    source: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Task:
    """An operator as it ran.

    Attributes:
        time: when, on the clock that names the blocks: all its outputs are taken by then.
        inputs, outputs: keys of blocks.
        types: dtype and shape of each output.
    """

    time: int
    name: str
    operator: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    types: tuple[DtypeAndShape, ...]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The blocks of a step by key, and its tasks in the order in which they ran."""

    blocks: Mapping[int, Block]
    tasks: tuple[Task, ...]

    @cached_property
    def makers(self) -> dict[int, Task]:
        """The task that made each block: the first, before updates in place."""
        return {key: task for task in reversed(self.tasks) for key in task.outputs}

    def type_of(self, key: int) -> DtypeAndShape:
        """Dtype and shape of a block; empty where no task made it."""
        maker = self.makers.get(key)
        types = dict(zip(maker.outputs, maker.types)) if maker else {}
        return types.get(key, ("", ()))

    @cached_property
    def users(self) -> dict[int, list[Task]]:
        """The tasks that read each block, in order."""
        users: dict[int, list[Task]] = {}
        for task in self.tasks:
            for key in task.inputs:
                users.setdefault(key, []).append(task)
        return users


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a table that MindSpore wrote."""
    csv.field_size_limit(1 << 30)
    with open(path, newline="") as file:
        yield from csv.DictReader(file)


def read_trace(folder: Path) -> Trace:
    """Read what MindSpore wrote for a rank."""
    blocks = [_block(row) for row in read_rows(folder / BLOCKS_NAME)]
    with open(folder / GRAPH_NAME) as file:
        tasks = tuple(_tasks(line for line in file if not line.startswith("    #")))
    return Trace(blocks={block.key: block for block in blocks}, tasks=tasks)


def _block(row: Mapping[str, str]) -> Block:
    return Block(
        key=int(row["start_time_stamp"]),
        end=int(row["end_time_stamp"]),
        num_bytes=int(row["size"]),
        source=row["type"],
        name=row["node_name"],
    )


def _tasks(lines: Iterator[str]) -> Iterator[Task]:
    """Each task takes a line for its name and one for its types."""
    for line in lines:
        found = TASK.match(line)
        if found is None:
            continue
        outputs, name, inputs, time = found.groups()
        types = TENSOR.findall(next(lines, "").partition(" <- ")[0])
        yield Task(
            time=int(time),
            name=name,
            operator=operator_of(name),
            inputs=tuple(map(int, KEY.findall(inputs))),
            outputs=tuple(map(int, KEY.findall(outputs))),
            types=tuple((dtype, tuple(map(int, re.findall(r"\d+", shape)))) for dtype, shape in types),
        )


def peak_moment(trace: Trace) -> int:
    """When most bytes are alive; the first such moment."""
    changes = [(block.key, block.num_bytes) for block in trace.blocks.values()]
    changes += [(block.end, -block.num_bytes) for block in trace.blocks.values()]
    changes.sort()  # what ends at a time is given back before more is taken
    totals = list(itertools.accumulate(number for _, number in changes))
    return changes[totals.index(max(totals))][0]


def alive_at(trace: Trace, moment: int) -> list[Block]:
    """The blocks that are alive then."""
    return [block for block in trace.blocks.values() if block.key <= moment < block.end]


def kinds_of(trace: Trace, vocab_size: int, num_tokens: int) -> dict[int, str]:
    """What every block is for, by its key.

    Args:
        vocab_size: the vocabulary's entries that a rank holds.
        num_tokens: tokens of a micro-batch that a rank holds.

    weights: parameters; weight copies: in another dtype or gathered. optimizer: Adam's moments. gradients:
    accumulators, what an optimizer step reads, and what only sums or casts make of it. logits: matrices with a row a
    token and a column an entry of the vocabulary. activations: other results of the network and their gradients.
    constants: what the compiler computed. other: what has no operator of the model.
    """
    found: dict[int, str] = {}
    for key, block in sorted(trace.blocks.items()):
        found[key] = _kind(trace, block, found, vocab_size, num_tokens)
    for key in sorted(found, reverse=True):
        if found[key] == "activations" and any(_takes_gradient(task, found) for task in trace.users.get(key, ())):
            found[key] = "gradients"
    return found


def _kind(trace: Trace, block: Block, found: Mapping[int, str], vocab_size: int, num_tokens: int) -> str:
    if block.source == "Weight":
        return next((kind for prefix, kind in PREFIXES.items() if block.name.startswith(prefix)), "weights")
    if block.source == "ConstantValue":
        return "constants"
    task = trace.makers.get(block.key)
    if block.source != "Kernel" or task is None or "/" not in task.name:
        return "other"
    if is_update(task.name):
        return "gradients"
    if task.operator in COPIES and task.inputs and found.get(task.inputs[0]) in ("weights", "weight copies"):
        return "weight copies"
    _, shape = trace.type_of(block.key)
    if len(shape) == 2 and shape[1] == vocab_size and num_tokens % max(shape[0], 1) == 0:
        return "logits"
    return "activations"


def _takes_gradient(task: Task, found: Mapping[int, str]) -> bool:
    """Whether what this task reads is a gradient of a weight."""
    if is_update(task.name):
        return True
    return task.operator in GRADIENT_STEPS and any(found.get(key) == "gradients" for key in task.outputs)
