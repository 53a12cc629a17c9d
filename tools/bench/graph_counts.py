"""What a compiled rank shows, whoever compiled it: memory, bytes on the wire, kernels. Imports no framework."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from mindmodel.dryrun.memory_trace import BLOCKS_NAME, read_rows
from mindmodel.dryrun.report import COLLECTIVES_PATH, KERNELS_PATH, Collective, read_collectives, read_launches
from mindmodel.parallel.mesh import Mesh

NETWORK = ("Gradients/", "/network-DecoderLoss/", "/network-Pipeline/", "/_backbone-")
"""In the names of nodes of the forward and backward pass, ours and MindFormers'."""
OUR_STEPS = ("/network-RankStep/", "/network-AccumulatingStep/")
"""In the names of nodes of mindmodel's step."""
ACCUMULATE = "Default/AssignAdd-"
"""Begins the names of nodes that sum the gradients of micro-batches."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Of one step of a rank.

    Attributes:
        wire_bytes: what its links carry: rings, and what it sends to and receives from other stages.
        network_kernels: of the forward and backward pass, and of the sums over micro-batches.
        update_kernels: all others: clipping, finite check, learning rate, optimizer.
        tensors: parameters of the rank's stage.
        compile_cpu_s: without imports.
    """

    peak_bytes: float
    wire_bytes: float
    network_kernels: float
    update_kernels: float
    tensors: float
    compile_cpu_s: float

    def extrapolated(self, deeper: Counts, share: float) -> Counts:
        """On the line from this one to a deeper model: 0 is this one, 1 the deeper."""
        ends = zip(asdict(self).items(), asdict(deeper).values())
        return Counts(**{name: near + (far - near) * share for (name, near), far in ends})


def read_counts(folder: Path, rank: int, mesh: Mesh, peak_bytes: int, compile_cpu_s: float) -> Counts:
    """From the folder that MindSpore left for a rank."""
    nodes = [node for _, node in read_launches(folder / KERNELS_PATH)]
    ours = any(step in node for node in nodes for step in OUR_STEPS)
    in_network = sum(is_of_network(node, ours) for node in nodes)
    return Counts(
        peak_bytes=peak_bytes,
        wire_bytes=wire_bytes(read_collectives(folder / COLLECTIVES_PATH, rank, mesh)),
        network_kernels=in_network,
        update_kernels=len(nodes) - in_network,
        tensors=num_tensors(_weights(folder / BLOCKS_NAME)),
        compile_cpu_s=compile_cpu_s,
    )


def is_of_network(node: str, ours: bool) -> bool:
    """Whether a node belongs to the forward or backward pass, by its name.

    Args:
        ours: whether the step is mindmodel's, whose update stands in Cells: outside of any are casts of weights and the
            backward functions of layers with collectives of their own.
    """
    bare = node.count("/") == 1 if ours else node.startswith(ACCUMULATE)
    return bare or any(part in node for part in NETWORK)


def wire_bytes(collectives: tuple[Collective, ...]) -> float:
    """By rings, which carry as much out as in; between stages both ways count."""
    received = sum(collective.bytes for collective in collectives if collective.kind == "Receive")
    return received + sum(collective.sent_bytes() for collective in collectives)


def _weights(path: Path) -> list[str]:
    """Names of what is in memory before the step."""
    return [row["node_name"] for row in read_rows(path) if row["type"] == "Weight"]


def num_tensors(weights: list[str]) -> int:
    """Parameters among them: moments and summed gradients have a parameter's name behind their own."""
    parameters = {name for name in weights if name.endswith("weight")}
    return sum(not any(name.endswith(f".{other}") for other in parameters) for name in parameters)
