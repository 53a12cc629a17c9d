"""The machines of a job and where they meet. Pure Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from mindmodel.errors import LaunchError

DEFAULT_PORT = 8118
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """As the command names them.

    Attributes:
        count: machines of the job.
        rank: of this one, 0 to count - 1; the first is the master.
        master: host name or address of node 0.
        port: where its scheduler listens; None is a free one, which only a single node may choose.
    """

    count: int = 1
    rank: int = 0
    master: str = LOOPBACK
    port: Optional[int] = None

    @property
    def launcher_port(self) -> int:
        """Where node 0's launcher listens for those of several nodes: the port after the scheduler's."""
        assert self.port is not None
        return self.port + 1


def nodes_of(count: int, rank: Optional[int], master: Optional[str]) -> Nodes:
    """The nodes that `--nodes`, `--node-rank` and `--master HOST[:PORT]` name.

    Raises:
        LaunchError: if a number is out of range, or several nodes have no master or no rank.
    """
    if count < 1:
        raise LaunchError(f"--nodes: {count} is no number of machines. Use 1 or more.")
    if count > 1 and (rank is None or master is None):
        raise LaunchError(
            f"--nodes {count}: every node must know its own number and where node 0 is. Add --node-rank 0 to "
            f"{count - 1} and --master HOST[:PORT]."
        )
    if not 0 <= (rank or 0) < count:
        raise LaunchError(f"--node-rank: {rank} is none of the {count} nodes. Use 0 to {count - 1}.")
    host, port = _host_and_port(master) if master is not None else (LOOPBACK, None)
    return Nodes(count=count, rank=rank or 0, master=host, port=port or (DEFAULT_PORT if count > 1 else None))


def _host_and_port(master: str) -> tuple[str, Optional[int]]:
    host, colon, port = master.rpartition(":") if ":" in master else (master, "", "")
    if not host or colon and not (port.isdigit() and 1024 <= int(port) <= 65535):
        raise LaunchError(f"--master: '{master}' is not HOST or HOST:PORT. Use a port of 1024 to 65535.")
    return host, int(port) if colon else None
