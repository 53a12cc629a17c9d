"""Which operators of a graph MindSpore has no kernel for on an Ascend device, asked without a chip.

MindSpore chooses kernels for a simulated device as for a real one: by what its own libraries register, kernels of aclnn
and adapters to operators of CANN. An operator with neither goes to the host's CPU if that has a kernel, else the graph
is refused. So each operator is compiled alone, as operators.py does it, in a process for the simulated device, and its
log tells which ones went to the CPU. That CANN has what an adapter stands for is known on a chip alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Iterator, Mapping

from mindmodel.debug.graph.sources import Source
from mindmodel.debug.graph.summary import Missing, with_tuples
from mindmodel.dryrun.compile import environment
from mindmodel.errors import GraphError

GRAPH_NAME, SOURCES_NAME, USES_NAME, LOG_NAME = "graph.mindir", "sources.json", "uses.json", "log.txt"
MARK = re.compile(r"^tried operator (\d+)$")
ERROR = re.compile(r"^[\w.]*(?:Error|Exception): .*", re.M)
TO_HOST = "Try to use backoff CPU kernel"
"""In MindSpore's log, when an operator has no kernel on Ascend."""
SELECTION_FAILED = "operator selection failed"
ON_HOST = "no kernel on Ascend: MindSpore runs it on the host's CPU, and copies what it reads and makes"
NOWHERE = "no kernel on Ascend, nor on the host's CPU"


def missing_on_ascend(graph: Path, sources: Mapping[str, Source]) -> tuple[Missing, ...]:
    """The operators of a graph that Ascend has no kernel for, as far as MindSpore knows.

    Args:
        graph: a file of MindSpore's.
        sources: lines of Python by a node's scope.

    Raises:
        BuildError: if there is neither CANN nor a stand-in.
        GraphError: if the process that asks fails.
    """
    variables = {**os.environ, **environment(1), "RANK_SIZE": "1", "RANK_ID": "0"}
    with tempfile.TemporaryDirectory(prefix="mindmodel-ascend-") as name:
        folder = Path(name)
        (folder / GRAPH_NAME).write_bytes(graph.read_bytes())
        (folder / SOURCES_NAME).write_text(json.dumps({scope: vars(line) for scope, line in sources.items()}))
        with open(folder / LOG_NAME, "wb") as log:
            command = [sys.executable, "-m", "mindmodel.debug.graph.missing_on_ascend", name]
            done = subprocess.run(command, env=variables, cwd=folder, stdout=log, stderr=log)
        text = (folder / LOG_NAME).read_text(errors="replace")
        if done.returncode != 0:
            last = (ERROR.findall(text) or ["it names no error"])[-1]
            raise GraphError(
                f"MindSpore could not be asked for the kernels of Ascend, code {done.returncode}: {last[:200]}. "
                "`mindmodel doctor` tells what a dry run needs; --device cpu lists those of the CPU."
            )
        uses = [Missing(**with_tuples(fields)) for fields in json.loads((folder / USES_NAME).read_text())]
        return tuple(_missing(uses, set(numbers_on_host(text))))


def _missing(uses: list[Missing], on_host: set[int]) -> Iterator[Missing]:
    for number, use in enumerate(uses):
        if number in on_host:
            refused = SELECTION_FAILED in use.reason
            yield dataclasses.replace(use, reason=NOWHERE if refused else ON_HOST)


def numbers_on_host(log: str) -> Iterator[int]:
    """The operators, in the order in which they were tried, that MindSpore wanted to give to the host's CPU."""
    sent = False
    for line in log.splitlines():
        sent = sent or TO_HOST in line
        if mark := MARK.match(line):
            if sent:
                yield int(mark[1])
            sent = False


def main(folder: Path) -> None:
    """Try all operators, and write down what they are and what MindSpore says of each."""
    from mindmodel.dryrun.child import end_with_parent

    end_with_parent()
    import mindspore as ms
    from mindspore.communication import init

    from mindmodel.debug.graph.missing import tried_alone

    ms.set_context(mode=ms.GRAPH_MODE, jit_config={"jit_level": "O0"})
    ms.set_device("Ascend")
    init()
    sources = {scope: Source(**line) for scope, line in json.loads((folder / SOURCES_NAME).read_text()).items()}
    rows = []
    for number, use in enumerate(tried_alone((folder / GRAPH_NAME).read_bytes())):
        os.write(2, f"tried operator {number}\n".encode())  # MindSpore logs there, too
        rows.append(dataclasses.asdict(use.missing(use.refusal or "", sources)))
    (folder / USES_NAME).write_text(json.dumps(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
