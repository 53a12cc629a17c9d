"""What must stand in the environment before MindSpore is loaded. Pure Python; imports no mindspore."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from mindmodel.errors import LaunchError
from mindmodel.machine import cpp_compiler, usable_cores
from mindmodel.recipe.schema import RuntimeSection

DEFAULTS = {"GLOG_v": "3", "OMP_WAIT_POLICY": "PASSIVE", "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}
"""GLOG_v=3: MindSpore's errors, without its warnings. PASSIVE: threads of fused kernels that wait must not spin on a
core that MatMul's own threads need. TensorBoard's and MindSpore's protobuf files agree only in the Python version."""
DETERMINISTIC = {"HCCL_DETERMINISTIC": "true", "LCCL_DETERMINISTIC": "1", "TE_PARALLEL_COMPILER": "1"}
"""What MindSpore sets with set_deterministic, and its fast AllReduce within a node; HCCL takes "strict" too."""

WORKERS_HERE = "MINDMODEL_WORKERS_HERE"
"""Set by `mindmodel launch`: the workers of this node."""

SPINS = "30000"
"""How often a thread of the native kernels looks for its next work before it sleeps, about 50 us.

They follow one another closely, and to wake a thread takes as long. MatMul's own threads, which the graph's formulas
need, would be in its way.
"""


def prepare_environment(runtime: RuntimeSection = RuntimeSection()) -> None:
    """Set what MindSpore reads when it is loaded; what the user has set stays, except a thread count asked for.

    Without one it is every core that this process may use, shared out evenly under msrun.

    Raises:
        LaunchError: if OMP_NUM_THREADS is no number of threads.
    """
    for name, value in {**DEFAULTS, **(DETERMINISTIC if runtime.deterministic else {})}.items():
        os.environ.setdefault(name, value)
    if runtime.cpu_kernels != "graph" and cpp_compiler() is not None:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    if runtime.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(runtime.threads)
    given = os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // _workers())))
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", given):
        raise LaunchError(
            f"OMP_NUM_THREADS in the environment: '{given}' is no number of threads. Unset it, or set runtime.threads."
        )


@dataclass(frozen=True, kw_only=True)
class Place:
    """This process among those of a job, from what msrun has put into its environment.

    Attributes:
        rank: of this process, 0 to num_ranks - 1.
        num_ranks: workers on all nodes.
        is_scheduler: whether it only lets the workers find one another.
    """

    rank: int = 0
    num_ranks: int = 1
    is_scheduler: bool = False


def place() -> Place:
    """This process's place; alone when msrun did not start it."""
    role = os.environ.get("MS_ROLE")
    if role not in ("MS_WORKER", "MS_SCHED"):
        return Place()
    rank, num_ranks = int(os.environ.get("MS_NODE_ID", "0")), int(os.environ.get("MS_WORKER_NUM", "1"))
    return Place(rank=rank, num_ranks=num_ranks, is_scheduler=role == "MS_SCHED")


def _workers() -> int:
    """Processes that share this machine's cores: those that were launched on it together."""
    return int(os.environ.get(WORKERS_HERE, str(place().num_ranks)))


def num_threads() -> int:
    """CPU threads that were set; a list, one number per nesting level, counts with its first."""
    return int(os.environ["OMP_NUM_THREADS"].split(",")[0])
