"""What the launchers of the other nodes have said, and what they are told."""

from __future__ import annotations

import dataclasses
import time
from typing import Any, Iterable, Iterator, Optional, Sequence

from mindmodel.parallel.launch import Launch
from mindmodel.supervise.failures import Failure, failure_from_json, failure_to_json
from mindmodel.supervise.hang import Sign
from mindmodel.supervise.link import ALIVE_S, Link, Message
from mindmodel.terminal import printable

ANSWER_S = 6.0
"""That node 0 and the others give each other to answer."""


class Peers:
    """Of one launch; on one node there are none.

    Attributes:
        failures: that other nodes have told, or that are the end of a node.
        verdict: the first failure of the job, as node 0 has found it.
        stop: why another node stops, as `SIGTERM on node 3`.
        finished: whether node 0 says that all nodes are done.
        hang: a rank of this node that node 0 takes for hanging.
        gone: whether a node left while the run was being stopped.
    """

    def __init__(self, launch: Launch, link: Link) -> None:
        self._launch, self._link = launch, link
        self.failures: list[Failure] = []
        self.verdict: Optional[Failure] = None
        self.stop: Optional[str] = None
        self.finished = self.gone = False
        self.hang: Optional[int] = None
        self._done: set[int] = set()
        self._signs: dict[int, tuple[float, list[Sign]]] = {}
        self._asked: dict[int, float] = {}
        self._told_s = float("-inf")

    @property
    def is_first(self) -> bool:
        """Whether this is node 0, which hears from all and decides."""
        return self._launch.nodes.rank == 0

    @property
    def all_done(self) -> bool:
        """Whether the workers of all other nodes have ended well."""
        return self._done >= set(self._link.channels)

    def hear(self, stopping: bool) -> None:
        """Take in what has come. A node that goes while the run is stopped has not failed."""
        for message in self._link.receive():
            if message.kind == "lost":
                self._lose(message.node, stopping)
            elif message.kind in ("failure", "verdict"):
                self._take_failure(message)
            elif message.kind == "stop":
                text = printable(str(message.value))[:60]
                self.stop = text if " on node " in text else f"{text} on node {message.node}"
            elif message.kind == "done":
                self._done.add(message.node)
            elif message.kind == "finished":
                self.finished = True
            elif message.kind == "hang" and message.value in list(self._launch.ranks):
                self.hang = message.value
            elif message.kind == "signs" and isinstance(message.value, list):
                count = len(self._launch.ranks)
                ranks = range(message.node * count, (message.node + 1) * count)
                self._signs[message.node] = time.monotonic(), list(_signs_from_json(message.value, ranks))

    def _lose(self, node: int, stopping: bool) -> None:
        if self.finished or node in self._done:
            return
        if stopping or self.stop is not None:
            self._done.add(node)
            self.gone = True
            self.finished = not self.is_first
            return
        text = "its launcher is gone: the machine, the network or the process has ended"
        self.failures.append(node_failure(node, self._link.host_of(node), text))

    def _take_failure(self, message: Message) -> None:
        failure = failure_from_json(message.value)
        if failure is None:
            return
        if message.kind == "verdict":
            self.verdict = failure
        else:
            self.failures.append(failure)

    def signs(self) -> Iterator[Sign]:
        """Of the ranks of other nodes, aged since they came."""
        now_s = time.monotonic()
        for heard_s, signs in self._signs.values():
            for sign in signs:
                yield dataclasses.replace(sign, age_s=sign.age_s + now_s - heard_s)

    def tell_signs(self, signs: Sequence[Sign]) -> None:
        """Every so often; it also says that this launcher lives."""
        if time.monotonic() - self._told_s > ALIVE_S:
            self._told_s = time.monotonic()
            self._link.send("signs", [dataclasses.astuple(sign) for sign in signs])

    def tell_stop(self, reason: str) -> None:
        """Ask all others to stop; node 0 passes it on."""
        self._link.send("stop", reason)

    def tell_done(self) -> None:
        """That all workers of this node have ended well."""
        self._link.send("done")

    def tell_finished(self) -> None:
        """That all of the job have."""
        self.finished = True
        self._link.send("finished")

    def tell_failure(self, failure: Failure) -> None:
        """Node 0's is the verdict."""
        self._link.send("verdict" if self.is_first else "failure", failure_to_json(failure))

    def ask_for_stack(self, sign: Sign) -> None:
        """Ask the node of a rank that hangs for its stack, which comes as a failure; or find that it says nothing."""
        node = sign.rank // len(self._launch.ranks)
        if sign.rank not in self._asked:
            self._asked[sign.rank] = time.monotonic()
            self._link.send("hang", sign.rank, node=node)
        elif time.monotonic() - self._asked[sign.rank] > ANSWER_S:
            self.failures.append(sign.failure(self._link.host_of(node), ("its node does not show its stack",)))

    def wait_for_verdict(self) -> Optional[Failure]:
        """What node 0 finds; None when it does not say."""
        end = time.monotonic() + ANSWER_S
        while self.verdict is None and time.monotonic() < end and not any(f.who == "node 0" for f in self.failures):
            time.sleep(0.05)
            self.hear(stopping=False)
        return self.verdict


def node_failure(node: int, host: str, text: str) -> Failure:
    """Of a node as a whole."""
    return Failure(who=f"node {node}", host=host, text=text, time_s=time.time())


def _signs_from_json(values: Iterable[Any], ranks: range) -> Iterator[Sign]:
    """What of it are signs of life of a node's ranks."""
    for value in values:
        kinds: tuple[Any, ...] = (int, str, int, (int, float), bool)
        if isinstance(value, list) and len(value) == 5 and all(isinstance(*pair) for pair in zip(value, kinds)):
            sign = Sign(rank=value[0], phase=value[1], step=value[2], age_s=float(value[3]), stopped=value[4])
            if sign.rank in ranks:
                yield sign
