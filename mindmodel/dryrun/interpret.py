"""Execute the partitioned graphs of all ranks in one process, in NumPy: in lockstep at collectives, floats promoted."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Any, Container, Generator, Mapping, Optional, Sequence

import numpy as np

from mindmodel.dryrun.collectives import COLLECTIVES, CollectiveCall, group_of, signature
from mindmodel.dryrun.graph import Graph
from mindmodel.dryrun.rank import Rank, Waiting
from mindmodel.errors import LayoutError


@dataclass(frozen=True, kw_only=True)
class _Letter:
    """A tensor that was sent and not yet received."""

    tag: int
    tensor: np.ndarray
    sender: Waiting


class _Progress:
    """Where every rank stands in one run."""

    def __init__(self, executions: list[Generator[Waiting, Any, Any]]):
        self.executions = executions
        self.waiting: dict[int, Waiting] = {}
        self.outputs: list[Any] = [None] * len(executions)
        self.mail: dict[tuple[int, int], deque[_Letter]] = defaultdict(deque)  # by sender and receiver
        for rank in range(len(executions)):
            self.resume(rank, None)

    def resume(self, rank: int, result: Any) -> None:
        """Let a rank go on with the result that it waits for, to where it next waits or to its end."""
        self.waiting.pop(rank, None)
        try:
            self.waiting[rank] = self.executions[rank].send(result)
        except StopIteration as end:
            self.outputs[rank] = end.value


class Interpreter:
    """Graphs of ranks 0 to N - 1 with their parameters.

    Args:
        graphs: one for each rank.
        parameters: of each rank, its slices by name; copied. Names that its graph does not have are passed over.
        dtype: float64 or float32, of every float in the graphs, whatever they declare.
        keep: for each rank, keys of values of its graph that are kept.

    Attributes:
        parameters: of each rank, by name, as they are now.
        kept: of each rank, by key.
        log: the collectives executed so far, one entry for each rank that took part.

    Raises:
        LayoutError: if a parameter is missing or has another shape or dtype.
    """

    def __init__(
        self,
        graphs: Sequence[Graph],
        parameters: Sequence[Mapping[str, np.ndarray]],
        dtype: Any = np.float64,
        keep: Optional[Sequence[Container[str]]] = None,
    ):
        ranks = zip(graphs, parameters, keep or [()] * len(graphs), strict=True)
        self._ranks = [Rank(number, graph, given, np.dtype(dtype), keys)
                       for number, (graph, given, keys) in enumerate(ranks)]
        self.parameters = [rank.parameters for rank in self._ranks]
        self.kept = [rank.kept for rank in self._ranks]
        self.log: list[CollectiveCall] = []

    def run(self, inputs: Sequence[Sequence[np.ndarray]]) -> list[Any]:
        """Execute every graph once.

        Args:
            inputs: of each rank.

        Returns: what each rank's graph returns: an array, or a nest of tuples.
        Raises:
            LayoutError: if the inputs do not fit, a primitive is not known or fails, a result is not what the graph
                declares, the ranks wait for each other, or a message is not received.
        """
        with np.errstate(all="ignore"):
            progress = _Progress([rank.run(given) for rank, given in zip(self._ranks, inputs, strict=True)])
            while progress.waiting:
                if not any([self._step(progress, rank) for rank in sorted(progress.waiting)]):
                    raise LayoutError(self._deadlock(progress))
        for letter in (letter for letters in progress.mail.values() for letter in letters):
            raise LayoutError(f"{letter.sender}: no rank receives what it sends, so it would wait for ever.")
        return progress.outputs

    def _deadlock(self, progress: _Progress) -> str:
        """What every rank is doing."""
        lines = ["The ranks wait for each other, so their graphs do not belong together:"]
        for rank in range(len(self._ranks)):
            waiting = progress.waiting.get(rank)
            lines.append(f"  {waiting} {_partners(waiting)}" if waiting else f"  rank {rank} has finished")
        return "\n".join([*lines, "Compile every rank anew, each in a process of its own."])

    def _step(self, progress: _Progress, rank: int) -> bool:
        """Let a rank, and those it meets, go on if they can."""
        if rank not in progress.waiting:
            return False
        waiting = progress.waiting[rank]
        try:
            results = self._results(progress, waiting)
        except Exception as error:
            raise LayoutError(f"{waiting}: cannot be executed: {error!r}") from error
        for member, result in results.items():
            progress.resume(member, result)
        return bool(results)

    def _results(self, progress: _Progress, waiting: Waiting) -> dict[int, Any]:
        """By rank, of those that can go on."""
        if waiting.primitive.name == "Send":
            return self._sent(progress, waiting)
        if waiting.primitive.name == "Receive":
            return self._received(progress, waiting)
        return self._exchanged(progress, waiting)

    def _sent(self, progress: _Progress, waiting: Waiting) -> dict[int, Any]:
        """Messages are buffered: a sender does not wait."""
        attributes, (tensor,) = waiting.primitive.attributes, waiting.operands
        route = waiting.rank, _partner(attributes, "dst_global_rank", "dest_rank")
        progress.mail[route].append(_Letter(tag=attributes["sr_tag"], tensor=tensor.copy(), sender=waiting))
        self.log += waiting.record(route, [tensor])
        return {waiting.rank: tensor}

    def _received(self, progress: _Progress, waiting: Waiting) -> dict[int, Any]:
        """In the order in which they were sent, which the tags confirm."""
        attributes = waiting.primitive.attributes
        route = _partner(attributes, "src_global_rank", "src_rank"), waiting.rank
        if not progress.mail[route]:
            return {}
        letter = progress.mail[route].popleft()
        sent, wanted = (letter.tag, letter.sender.node.type), (attributes["sr_tag"], waiting.node.type)
        if sent != wanted:
            raise ValueError(f"wants tag {wanted[0]}, {wanted[1]}; {letter.sender} sends tag {sent[0]}, {sent[1]}")
        self.log += waiting.record(route, [letter.tensor])
        return {waiting.rank: letter.tensor}

    def _exchanged(self, progress: _Progress, waiting: Waiting) -> dict[int, Any]:
        """Of a collective, once all ranks of its group have come to it."""
        group = group_of(waiting.primitive, len(self._ranks))
        members = [progress.waiting[rank] for rank in group if rank in progress.waiting]
        if len(members) < len(group) or any(_agreed(member) != _agreed(waiting) for member in members):
            return {}
        for member in members:
            first = member.operands[0]
            self.log += member.record(group, first if isinstance(first, tuple) else [first])
        operands = {member.rank: member.operands for member in members}
        results = COLLECTIVES[waiting.primitive.name](waiting.primitive.attributes, operands)
        return dict(zip(group, results))


def _agreed(waiting: Waiting) -> tuple[Any, ...]:
    """What the ranks of a group agree on; with two dtypes on the wire they would not understand each other."""
    return *signature(waiting.primitive), *(declared.dtype for declared in waiting.declared)


def _partner(attributes: Mapping[str, Any], name: str, within: str) -> int:
    """The other rank of a message; a forward pass alone names it by its place in the group."""
    return attributes[name] if name in attributes else attributes["group_rank_ids"][attributes[within]]


def _partners(waiting: Waiting) -> str:
    """For messages: whom a rank waits for."""
    attributes = waiting.primitive.attributes
    if waiting.primitive.name == "Receive":
        sender = _partner(attributes, "src_global_rank", "src_rank")
        return f"from rank {sender} with tag {attributes['sr_tag']}"
    return f"in group {attributes.get('group')} of ranks {attributes.get('group_rank_ids')}"
