"""The one command that starts a job's processes on this node: msrun, with what it must find in its environment.

Pure Python. Nothing is started or written here.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shlex
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Optional, Sequence

from mindmodel import machine
from mindmodel.errors import LaunchError, LayoutError
from mindmodel.parallel.environment import WORKERS_HERE
from mindmodel.parallel.heartbeat import HEARTBEATS, heartbeat_file
from mindmodel.parallel.mesh import mesh_of
from mindmodel.parallel.nodes import Nodes
from mindmodel.recipe.layout_rules import known, multiples_near
from mindmodel.recipe.rules import resolve_degrees
from mindmodel.recipe.schema import Recipe

VISIBLE_DEVICES = "ASCEND_RT_VISIBLE_DEVICES"
HCCL_BUFFER_MB = 200
HCCL_CONNECT_S = (120, 7200)
HCCL_UNIT_S, HCCL_EXEC_S = 68, (1836, 17340)
"""HCCL counts its time limit in units of 68 s; its own default, and the longest it takes."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How this node's processes are started.

    Attributes:
        recipe: all degrees are numbers.
        nodes: the port is a number.
        workers: on all nodes; as many on each.
        command: the program and its arguments; the working folder stays.
        environment: what is put on top of this process's.
        logs: folder of the processes' logs and heartbeats.
    """

    recipe: Recipe
    nodes: Nodes
    workers: int
    command: tuple[str, ...]
    environment: Mapping[str, str]
    logs: Path

    @property
    def ranks(self) -> range:
        """Of this node's workers."""
        here = self.workers // self.nodes.count
        return range(self.nodes.rank * here, (self.nodes.rank + 1) * here)

    def log_of(self, rank: Optional[int]) -> Path:
        """Where a worker's output goes; None is the scheduler."""
        return self.logs / ("scheduler.log" if rank is None else f"worker_{rank}.log")

    def heartbeat_of(self, rank: int) -> Path:
        """Where a worker writes that it lives."""
        return heartbeat_file(self.logs, rank)

    def shell(self) -> str:
        """The command as a shell takes it, the environment before it."""
        own = os.environ.get("PATH", "")
        values = {name: shlex.quote(value) for name, value in self.environment.items()}
        folder = self.environment["PATH"].removesuffix(os.pathsep + own)
        values["PATH"] = f'{shlex.quote(folder)}{os.pathsep}"$PATH"'
        lines = ["env", *(f"  {name}={value}" for name, value in values.items()), f"  {shlex.join(self.command)}"]
        return " \\\n".join(lines)


def plan_launch(
    recipe: Recipe,
    nodes: Nodes,
    arguments: Sequence[str],
    *,
    device_ids: Optional[str] = None,
    timeout_s: int = 600,
    hang_limit_s: int = 600,
) -> Launch:
    """Derive processes, command and environment from the mesh.

    Args:
        recipe: a checked recipe; one degree may be auto.
        arguments: of `mindmodel train`, as the user gave them: RECIPE, key=value pairs, options.
        device_ids: Ascend devices of this node, such as `0,2,5-7`; None: ASCEND_RT_VISIBLE_DEVICES, else the first.
        timeout_s: until all processes must have met.
        hang_limit_s: until a rank that does not move is taken for dead; MindSpore's own limits must lie above it.

    Raises:
        LaunchError: if the workers cannot be shared over the nodes or the devices, the master is unknown or its port
            taken, or msrun is missing.
        LayoutError: if the degrees do not fit the workers, or this kind of device.
    """
    ascend = machine.runs_on_ascend(recipe.runtime.device)
    refuse_cut_weights(recipe)
    devices = _devices(device_ids, ascend)
    workers = _num_workers(recipe, nodes, ascend, devices)
    resolved = resolve_degrees(recipe, workers)
    refuse_layout_without_graph(resolved)
    here = workers // nodes.count
    _check_devices(devices, here, ascend)
    nodes = _meeting_place(nodes)
    program, folder = _interpreter()
    logs = Path(recipe.output) / "logs"
    options = {
        "worker_num": workers,
        "local_worker_num": here,
        "master_addr": nodes.master,
        "master_port": nodes.port,
        "node_rank": nodes.rank,
        "log_dir": logs,
        "join": False,  # it would end rank 0 while that still saves
        "cluster_time_out": timeout_s,
        **({"bind_core": True} if ascend else {}),
    }
    filled = [f"parallel.{name}={getattr(resolved.parallel, name)}" for name in _auto_degrees(recipe)]
    return Launch(
        recipe=resolved,
        nodes=nodes,
        workers=workers,
        command=(
            sys.executable,
            str(_msrun()),
            *(f"--{name}={value}" for name, value in options.items()),
            *(program, "-m", "mindmodel", "train", *arguments, *filled),
        ),
        environment=_environment(folder, logs, here, devices, ascend, timeout_s, hang_limit_s),
        logs=logs,
    )


def _auto_degrees(recipe: Recipe) -> list[str]:
    return [name for name, degree in recipe.parallel.degrees.items() if degree == "auto"]


def _num_workers(recipe: Recipe, nodes: Nodes, ascend: bool, devices: Optional[tuple[int, ...]]) -> int:
    """As many as the degrees make; an automatic one takes a CPU process a node, or all devices."""
    if _auto_degrees(recipe):
        devices_a_node = recipe.runtime.devices_per_node if devices is None else len(devices)
        return nodes.count * (devices_a_node if ascend else 1)
    workers = math.prod(map(known, recipe.parallel.degrees.values()))
    if workers % nodes.count:
        raise LaunchError(
            f"recipe '{recipe.name}': {workers} workers cannot be shared evenly by {nodes.count} nodes. Use "
            f"{multiples_near(workers, nodes.count)} workers: change parallel.dp, or --nodes."
        )
    return workers


def refuse_layout_without_graph(recipe: Recipe) -> None:
    """An Ascend device's layout is one of the compiled graph. On CPU every rank holds the whole model.

    Raises:
        LayoutError: if there is a layout and no graph. All degrees must be known.
    """
    num_devices = mesh_of(recipe.parallel).num_devices
    if recipe.runtime.mode == "pynative" and num_devices > 1 and machine.runs_on_ascend(recipe.runtime.device):
        raise LayoutError(
            f"recipe '{recipe.name}', runtime.mode: 'pynative' on {num_devices} Ascend devices: MindSpore lays out "
            "compiled graphs only. Use graph; `--single` for one device; or runtime.device=cpu with dp alone."
        )


def refuse_cut_weights(recipe: Recipe) -> None:
    """On CPU MindSpore partitions nothing: every rank holds the whole model, and only the batch is cut.

    Raises:
        LayoutError: if the layout of a run on CPU cuts more.
    """
    if machine.runs_on_ascend(recipe.runtime.device):
        return
    parallel = recipe.parallel
    cut = [f"{axis}={getattr(parallel, axis)}" for axis in ("tp", "pp", "cp") if getattr(parallel, axis) != 1]
    if parallel.shard_optimizer != "none":
        cut.append(f"shard_optimizer={parallel.shard_optimizer}")
    if cut:
        raise LayoutError(
            f"recipe '{recipe.name}', parallel: {', '.join(cut)} cannot train here: on CPU only dp can be above 1. Use "
            "dp alone; `--single` for one device; `mindmodel dryrun --prove` compiles and proves the layout without a "
            "chip; runtime.device=ascend trains it."
        )


def _devices(asked: Optional[str], ascend: bool) -> Optional[tuple[int, ...]]:
    """The devices of this node that may be used; None when nobody has said."""
    if not ascend:
        if asked is not None:
            raise LaunchError(f"--device-ids {asked}: this run is on CPU, which has no device ids. Leave it out.")
        return None
    if asked is not None:
        return parse_device_ids(asked, "--device-ids")
    visible = os.environ.get(VISIBLE_DEVICES)
    return parse_device_ids(visible, VISIBLE_DEVICES) if visible else None


def parse_device_ids(text: str, where: str) -> tuple[int, ...]:
    """Numbers and ranges, such as `0,2,5-7`.

    Raises:
        LaunchError: if it is something else, or names a device twice.
    """
    ids: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        if match is None or match[2] is not None and int(match[2]) < int(match[1]):
            raise LaunchError(f"{where}: '{text}' is no list of devices. Use numbers and ranges, such as 0,2,5-7.")
        ids += range(int(match[1]), int(match[2] or match[1]) + 1)
    twice = sorted({number for number in ids if ids.count(number) > 1})
    if twice:
        raise LaunchError(f"{where}: '{text}' names device {twice[0]} twice. Use each once.")
    return tuple(ids)


def _check_devices(devices: Optional[tuple[int, ...]], here: int, ascend: bool) -> None:
    """As many devices as workers on this node."""
    if devices is not None and len(devices) != here:
        names = ", ".join(map(str, devices))
        raise LaunchError(
            f"devices {names}: {len(devices)} for {here} workers of this node. Use --device-ids with {here} devices, "
            f"or parallel.dp=auto for the {len(devices)}."
        )
    present = machine.ascend_devices() if ascend else 0
    if devices is None and 0 < present < here:
        raise LaunchError(
            f"{here} workers on this node, which has {present} Ascend devices. Use more --nodes, a smaller "
            f"parallel.dp, or parallel.dp=auto with runtime.devices_per_node={present}."
        )


def _meeting_place(nodes: Nodes) -> Nodes:
    """The nodes with a port that is free here, if here is where the scheduler will be."""
    address = resolve(nodes.master)
    if nodes.count > 1 and nodes.port == 65535:
        raise LaunchError("--master: port 65535 leaves none for the launchers, which take the next. Use a lower one.")
    if nodes.rank:
        return nodes
    try:
        with socket.socket(address[0], socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address[1], nodes.port or 0))
            return dataclasses.replace(nodes, port=probe.getsockname()[1])
    except OSError as error:
        raise LaunchError(
            f"--master: the scheduler cannot listen on {nodes.master}:{nodes.port}: {error.strerror}. Node 0 must be "
            "the machine that has this address, and no other job may use the port; --master HOST:PORT names another."
        ) from error


def resolve(host: str) -> tuple[int, str]:
    """Address family and address of a host.

    Raises:
        LaunchError: if nobody knows the host.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise LaunchError(
            f"--master: the host '{host}' is unknown here ({getattr(error, 'strerror', error)}). Use the name or the "
            "address of node 0 as this machine knows it."
        ) from error
    return family, str(address[0])


def _msrun() -> Path:
    path = Path(sys.executable).with_name("msrun")
    if not path.is_file():
        raise LaunchError(
            f"{path}: MindSpore's launcher is missing beside this Python. Install MindSpore there: "
            f"{sys.executable} -m pip install mindspore==2.9.0"
        )
    return path


def _interpreter() -> tuple[str, Path]:
    """The name under which msrun finds this interpreter, and the folder that PATH must begin with."""
    own = Path(sys.executable)
    for name in ("python", "python3"):  # msrun knows no other
        if own.with_name(name).exists() and own.with_name(name).samefile(own):
            return name, own.parent
    raise LaunchError(
        f"{own.parent}: msrun starts a program named python or python3, and here neither is {own.name}. Make a virtual "
        "environment with this Python and install mindmodel there."
    )


def _environment(
    folder: Path,
    logs: Path,
    here: int,
    devices: Optional[tuple[int, ...]],
    ascend: bool,
    timeout_s: int,
    hang_limit_s: int,
) -> dict[str, str]:
    """What the processes must find; limits that the user has set stay."""
    patience_s = 2 * hang_limit_s  # ranks wait for one that saves or evaluates, and a hang is to be found by us
    limits = {"MS_NODE_TIMEOUT": patience_s, "MS_RECEIVE_MSG_TIMEOUT": patience_s}
    if ascend:
        units = math.ceil(max(HCCL_EXEC_S[0], patience_s) / HCCL_UNIT_S)
        limits["HCCL_CONNECT_TIMEOUT"] = min(max(timeout_s, HCCL_CONNECT_S[0]), HCCL_CONNECT_S[1])
        limits["HCCL_EXEC_TIMEOUT"] = min(units * HCCL_UNIT_S, HCCL_EXEC_S[1])
        limits["HCCL_BUFFSIZE"] = HCCL_BUFFER_MB
    return {
        "PATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PATH")))),
        WORKERS_HERE: str(here),
        HEARTBEATS: str(logs.absolute()),
        **({VISIBLE_DEVICES: ",".join(map(str, devices))} if devices is not None else {}),
        **{name: str(value) for name, value in limits.items() if name not in os.environ},
    }
