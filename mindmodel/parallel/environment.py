"""What must stand in the environment before MindSpore is loaded. Pure Python; imports no mindspore."""

from __future__ import annotations

import os
from typing import Optional

from mindmodel.machine import usable_cores

# GLOG_v=3: MindSpore's errors, without its warnings. PASSIVE: threads of fused kernels that wait must not spin on a
# core that MatMul's own threads need. TensorBoard's and MindSpore's protobuf files agree only in the Python version.
DEFAULTS = {"GLOG_v": "3", "OMP_WAIT_POLICY": "PASSIVE", "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}


def prepare_environment(threads: Optional[int] = None) -> None:
    """Set what MindSpore reads when it is loaded; what the user has set stays, except a thread count asked for.

    Args:
        threads: CPU threads; None is every core this process may use, shared out evenly under msrun.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // _workers())))


def _workers() -> int:
    """Processes that msrun started together and that share this machine's cores."""
    return int(os.environ.get("MS_WORKER_NUM", "1")) if os.environ.get("MS_ROLE") == "MS_WORKER" else 1


def num_threads() -> int:
    """CPU threads that were set; a list, one number per nesting level, counts with its first."""
    return int(os.environ["OMP_NUM_THREADS"].split(",")[0])
