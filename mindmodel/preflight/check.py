"""Before a chip is used: are the nodes of a job alike and fit for it? Pure Python; nothing is started.

`mindmodel launch RECIPE --check` calls `check` on every node; the nodes meet where the job's scheduler will listen.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional, Sequence

from mindmodel.errors import LaunchError
from mindmodel.parallel.heartbeat import host_name
from mindmodel.parallel.json_lines import Message
from mindmodel.parallel.mesh import mesh_of
from mindmodel.parallel.nodes import Nodes
from mindmodel.preflight.facts import gather, nearest_folder
from mindmodel.preflight.judgement import judge
from mindmodel.preflight.meeting import hold_meeting, port_is_free
from mindmodel.preflight.report import Fact, Report
from mindmodel.preflight.visit import Clock, visit_node_0
from mindmodel.recipe.dump import recipe_to_dict
from mindmodel.recipe.schema import SECTIONS, Recipe
from mindmodel.terminal import Terminal, printable

TOKEN = re.compile(r"\.mindmodel-check-[0-9a-f]{16}")
TOKEN_LIMIT_S = 3.0
"""How long a file that another node made may take to appear on a network's file system."""
NO_LAG = "+0.000 s"
CLOCK_LIMIT_S = 1.0
"""Times in logs of nodes must tell which rank failed first."""
MAX_LINES = 1000


def check(
    recipe: Recipe, nodes: Nodes, terminal: Terminal, timeout_s: float = 60.0,
    device_ids: Optional[Sequence[int]] = None,
) -> int:
    """Compare all nodes of a job and print one table, the same on each.

    Nothing is written but a small file beside node 0's run folder, by which the others see that it is theirs too; it is
    gone at the end.

    Args:
        recipe: as it would be launched, all degrees numbers.
        nodes: the job's machines.
        timeout_s: seconds by which all nodes must have reported to node 0.
        device_ids: of the devices that the job uses here; default the first of this node, as many as the layout needs.

    Returns:
        0 if all nodes are alike and fit, 1 if something is off.

    Raises:
        LaunchError: if the nodes cannot meet.
    """
    ids = range(mesh_of(recipe.parallel).num_devices // nodes.count) if device_ids is None else device_ids
    place = nearest_folder(Path(recipe.output).absolute().parent)
    facts = {**gather(recipe, ids), "run folder": _writable(place), "port": _port(nodes), "clock": Fact(text=NO_LAG)}
    own = Report(host=host_name(), facts=facts, recipe=_flat(recipe))
    if nodes.count == 1:
        verdict = _verdict({0: own})
    elif nodes.rank == 0:
        verdict = _lead(own, place, nodes, terminal, timeout_s)
    else:
        terminal.say(f"node {nodes.rank} of {nodes.count}: reporting to node 0 at {nodes.master}:{nodes.port}")
        verdict = visit_node_0(nodes, lambda greeting, clock: _visitor(own, place, greeting, clock), timeout_s)
    return _show(verdict, terminal)


def _lead(own: Report, place: Path, nodes: Nodes, terminal: Terminal, timeout_s: float) -> Message:
    """Node 0 of several."""
    terminal.say(
        f"node 0 of {nodes.count}: waiting at {nodes.master}:{nodes.port} for the others, {timeout_s:g} s at the most"
    )
    with _token(place) as token:
        return hold_meeting(
            nodes, {"token": token}, lambda others: _verdict({0: own, **others}), terminal.say, timeout_s
        )


def _visitor(own: Report, place: Path, greeting: Message, clock: Clock) -> Report:
    """What another node reports, now that it has met node 0."""
    facts = {**own.facts, "clock": _clock(clock)}
    if not facts["run folder"].fault:
        facts["run folder"] = _shared(place, greeting.get("token"))
    return replace(own, facts=facts)


def _flat(recipe: Recipe) -> dict[str, str]:
    """The recipe's values as text by dotted key."""
    plain = recipe_to_dict(recipe)
    return {f"{section}.{key}": str(value) for section in SECTIONS for key, value in plain[section].items()}


def _writable(place: Path) -> Fact:
    if os.access(place, os.W_OK | os.X_OK):
        return Fact(text="well")
    return Fact(text="not writable", fault=f"{place}: cannot be written. Choose another runtime.output.")


@contextmanager
def _token(place: Path) -> Iterator[Optional[str]]:
    """The name of a file that is made in a folder and removed again; None where none can be made."""
    path = place / f".mindmodel-check-{secrets.token_hex(8)}"
    try:
        path.touch(exist_ok=False)
    except OSError:
        yield None
        return
    try:
        yield path.name
    finally:
        path.unlink(missing_ok=True)


def _shared(place: Path, token: Any) -> Fact:
    """Whether node 0's file is in this node's folder too."""
    if not isinstance(token, str) or not TOKEN.fullmatch(token):
        return Fact(text="not compared")
    end_s = time.monotonic() + TOKEN_LIMIT_S
    while not (place / token).exists():
        if time.monotonic() > end_s:
            return Fact(
                text="not shared",
                fault=f"{place}: is not the folder that node 0 has under this name. Mount it on every node, or choose "
                "a runtime.output that they share.",
            )
        time.sleep(0.1)
    return Fact(text="well")


def _clock(clock: Clock) -> Fact:
    text = f"{clock.ahead_s:+.3f} s"
    fault = f"is {text} off node 0's, more than {CLOCK_LIMIT_S:g} s. Set it by NTP."
    off = abs(clock.ahead_s) > CLOCK_LIMIT_S + clock.error_s
    return Fact(text=text, fault=fault if off else "", amount=clock.ahead_s)


def _port(nodes: Nodes) -> Fact:
    """Whether node 0 can listen where the job will: its scheduler, and beside it the launchers of several nodes.

    The port at which several nodes meet now is seen to be free by that.
    """
    if nodes.port is None:
        return Fact(text="any")
    text, port = (str(nodes.port), nodes.port) if nodes.count == 1 else (f"{nodes.port}, next", nodes.launcher_port)
    try:
        if nodes.rank == 0:
            port_is_free(replace(nodes, port=port))
    except LaunchError as error:
        return Fact(text=f"{port} taken", fault=str(error))
    return Fact(text=text)


def _verdict(reports: Mapping[int, Report]) -> Message:
    fit, lines = judge(reports)
    return {"fit": fit, "lines": lines}


def _show(verdict: Message, terminal: Terminal) -> int:
    fit, lines = verdict.get("fit"), verdict.get("lines")
    if not isinstance(fit, bool) or not isinstance(lines, list) or len(lines) > MAX_LINES:
        raise LaunchError("node 0 gave a verdict that is none. Install the same mindmodel on every node.")
    for line in lines:
        terminal.say(printable(str(line)))
    return 0 if fit else 1
