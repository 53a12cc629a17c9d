"""What a compiled rank says: its peak of memory by kind, its collectives, the bytes that they move, its kernels."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

from mindmodel.dryrun.compile import Compiled
from mindmodel.dryrun.jobs import LOG_NAME
from mindmodel.dryrun.live import Live, live_of
from mindmodel.dryrun.memory_trace import COARSER, NO_KERNEL, read_rows, read_trace
from mindmodel.dryrun.scopes import operator_of
from mindmodel.fleet.collectives import CollectiveTotal, added_up
from mindmodel.fleet.memory import KINDS
from mindmodel.fleet.rank_sizes import RankSizes
from mindmodel.parallel.mesh import Mesh, mesh_of, stage_of

COLLECTIVES_PATH = Path("execute_order", "comm_execute_order.csv")
KERNELS_PATH = Path("execute_order", "execute_order.csv")
CHOSEN = re.compile(r"\b(\w+) select (\w+) kernel")
OLD_KIND = "aclop"
IN_LAYERS = "/layers-CellList/"


@dataclass(frozen=True, kw_only=True)
class Collective(CollectiveTotal):
    """Collectives alike over the same ranks; bytes are of whole tensors: what is summed, gathered, scattered or sent.

    Attributes:
        ranks: of the group, in its order; of Send and Receive this rank and the other.
    """

    ranks: tuple[int, ...]

    def sent_bytes(self) -> float:
        """Bytes that the rank sends, by rings."""
        return ring_bytes(self.kind, self.bytes, len(self.ranks))

    def leaves_node(self, devices_per_node: int) -> bool:
        """Whether the ranks stand in several nodes, so that their ring is as fast as the network."""
        return len({rank // devices_per_node for rank in self.ranks}) > 1


@dataclass(frozen=True, kw_only=True)
class RankReport:
    """One rank of a compiled step.

    Attributes:
        live: what is alive in the step, and at the moment of the peak.
        host_bytes: largest memory of the process that compiled.
        cpu_s: that it took.
        kernels: launches of one step, by the operator's name; collectives, events and views are none.
        layer_kernels: those of `kernels` that stand in the rank's layers.
        old_kernels: names of those that are of the old kind aclop, which is launched through an operator's whole
            description and is slower than aclnn.
    """

    rank: int
    stage: int
    live: Live
    host_bytes: int
    cpu_s: float
    collectives: tuple[Collective, ...]
    kernels: Mapping[str, int]
    layer_kernels: int
    old_kernels: tuple[str, ...]

    @property
    def peak_bytes(self) -> int:
        """Most bytes alive at a time, as MindSpore measured."""
        return self.live.peak_bytes

    @property
    def by_kind(self) -> dict[str, int]:
        """Bytes at the peak, by the kinds of the closed form."""
        found = dict.fromkeys(KINDS, 0)
        for kind, num_bytes in self.live.by_kind.items():
            found[COARSER.get(kind, kind)] += num_bytes
        return found

    def wire_bytes(self, devices_per_node: int) -> tuple[int, int]:
        """Bytes that the rank sends in a step over the links of its node, and over the network."""
        totals = [0.0, 0.0]
        for collective in self.collectives:
            totals[collective.leaves_node(devices_per_node)] += collective.sent_bytes()
        return round(totals[0]), round(totals[1])

    def to_json(self) -> dict[str, Any]:
        """As the command prints it for scripts."""
        return {
            "rank": self.rank,
            "stage": self.stage,
            "peak_bytes": self.peak_bytes,
            "by_kind": self.by_kind,
            "host_bytes": self.host_bytes,
            "collectives": [dataclasses.asdict(total) for total in self.by_axes()],
            "kernels": dict(self.kernels),
        }

    def by_axes(self) -> list[CollectiveTotal]:
        """Collectives of the same axes as one, whichever the other ranks are."""
        return added_up(
            CollectiveTotal(kind=c.kind, axes=c.axes, count=c.count, bytes=c.bytes, dtype=c.dtype)
            for c in self.collectives
        )


def ring_bytes(kind: str, num_bytes: float, num_ranks: int) -> float:
    """Bytes that each rank of a ring sends for whole tensors of `num_bytes`.

    Source: Thakur, Rabenseifner and Gropp, Optimization of Collective Communication Operations in MPICH (2005): a ring
    gathers or scatters in n - 1 steps of one n-th each; a sum is both. AllToAll keeps one n-th. Receive sends nothing.
    """
    others = (num_ranks - 1) / num_ranks
    return num_bytes * {"AllReduce": 2 * others, "Send": 1, "Receive": 0}.get(kind, others)


def report_of(compiled: Compiled) -> RankReport:
    """Read what a rank compiled at level 1 left in its folder."""
    job, result, mesh = compiled.job, compiled.result, mesh_of(compiled.job.recipe.parallel)
    folder, sizes = compiled.folder / f"rank_{job.rank}", RankSizes(job.recipe, job.rank)
    kernels, in_layers = read_kernels(folder / KERNELS_PATH)
    chosen = chosen_kinds(compiled.folder / LOG_NAME)
    return RankReport(
        rank=job.rank,
        stage=stage_of(job.rank, mesh),
        live=live_of(read_trace(folder), result["peak_bytes"], sizes.vocabulary, sizes.tokens),
        host_bytes=result["host_bytes"],
        cpu_s=result["cpu_s"],
        collectives=read_collectives(folder / COLLECTIVES_PATH, job.rank, mesh),
        kernels=kernels,
        layer_kernels=in_layers,
        old_kernels=tuple(name for name in kernels if chosen.get(name) == OLD_KIND),
    )


def read_collectives(path: Path, rank: int, mesh: Mesh) -> tuple[Collective, ...]:
    """Collectives of a step, those alike in one entry, largest first; a step without any has no table."""
    found = []
    for row in read_rows(path) if path.is_file() else ():
        kind = row["primitive"]
        other = {"Send": row["dest_rank"], "Receive": row["src_rank"]}.get(kind)
        ranks = tuple(map(int, row["comm_rank"].split())) if other is None else (rank, int(other))
        num_bytes, dtype = max(int(row["input_size"]), int(row["output_size"])), row["output_type"].lower()
        axes = mesh.axes_of(ranks)
        found.append(Collective(kind=kind, axes=axes, count=1, bytes=num_bytes, dtype=dtype, ranks=ranks))
    return tuple(sorted(added_up(found), key=lambda one: -one.bytes))


def read_kernels(path: Path) -> tuple[dict[str, int], int]:
    """Kernels of a step by name, most frequent first, and how many of them stand in layers."""
    launches = read_launches(path)
    counts = Counter(operator for operator, _ in launches)
    return dict(counts.most_common()), sum(IN_LAYERS in node for _, node in launches)


def read_launches(path: Path) -> list[tuple[str, str]]:
    """Operator and whole name of each kernel of a step, in their order; collectives, events and views are none."""
    found = []
    for row in read_rows(path):
        name = operator_of(row["node_name"])
        if not row["group"] and name not in NO_KERNEL:
            found.append((name, row["node_name"]))
    return found


def chosen_kinds(log: Path) -> dict[str, str]:
    """Which kind of kernel MindSpore chose for each operator: aclnn, aclop or hccl."""
    return dict(CHOSEN.findall(log.read_text(errors="replace")))
