"""All nodes of a job print the same table, and what is off on one of them is named."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import pytest

from command import ROOT
from mindmodel.errors import LaunchError
from mindmodel.parallel.nodes import Nodes
from mindmodel.preflight import check, visit
from mindmodel.preflight.report import Fact
from mindmodel.preflight.visit import Clock
from mindmodel.recipe.dump import recipe_to_yaml
from mindmodel.terminal import Terminal


@pytest.fixture
def recipe(small_recipe, tmp_path):
    """Two processes, its run folder in a folder of the test's own."""
    return replace(
        small_recipe,
        parallel=replace(small_recipe.parallel, dp=2),
        runtime=replace(small_recipe.runtime, output=str(tmp_path / "runs" / "tests")),
    )


@pytest.fixture
def port():
    """One that nobody listens at, nor at the next."""
    while True:
        with socket.socket() as one, socket.socket() as other, suppress(OSError, OverflowError):
            one.bind(("127.0.0.1", 0))
            other.bind(("127.0.0.1", one.getsockname()[1] + 1))
            return one.getsockname()[1]


@pytest.fixture
def check_on(port):
    """Function: check on a node for each recipe at once; gives (exit code or error, what was printed) of each."""

    def node(rank: int, count: int, recipe) -> tuple:
        threading.current_thread().name = str(rank)
        stream = io.StringIO()
        nodes = Nodes(count=count, rank=rank, master="127.0.0.1", port=port)
        try:
            code = check.check(recipe, nodes, Terminal(stream), timeout_s=10, device_ids=[0])
        except LaunchError as error:
            code = error
        return code, stream.getvalue()

    def run(*recipes) -> list[tuple]:
        with ThreadPoolExecutor() as pool:
            return list(pool.map(node, range(len(recipes)), [len(recipes)] * len(recipes), recipes))

    return run


@pytest.fixture
def only_on(monkeypatch):
    """Function: on this node a row has this fact."""
    gather = check.gather

    def change(rank: int, row: str, fact: Fact) -> None:
        def changed(*args):
            return {**gather(*args), **({row: fact} if threading.current_thread().name == str(rank) else {})}

        monkeypatch.setattr(check, "gather", changed)

    return change


def table(printed: str) -> list[str]:
    """What stands below the first line, which each node has for itself."""
    return printed.splitlines()[1:]


def test_one_node_checks_itself_without_a_network(recipe, monkeypatch):
    monkeypatch.setattr(socket, "socket", None)
    stream = io.StringIO()
    assert check.check(recipe, Nodes(), Terminal(stream)) == 0
    lines = stream.getvalue().splitlines()
    assert lines[0].split() == ["node", "0"] and lines[-1] == "all is well"
    assert "devices      2 on" in stream.getvalue() and "port         any" in stream.getvalue()


def test_nodes_that_are_alike_stand_in_one_column_on_all_of_them(recipe, check_on, tmp_path):
    (tmp_path / "runs").mkdir()
    (code, printed), *others = check_on(recipe, recipe, recipe)
    assert code == 0 and [other[0] for other in others] == [0, 0]
    assert table(printed)[0].split() == ["nodes", "0-2"] and table(printed)[-1] == "all is well"
    assert all(table(other[1]) == table(printed) for other in others)
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"]


@pytest.mark.parametrize(
    "row, fact, told",
    [
        ("python", Fact(text="3.9.1"), "python: 3.9.1; nodes 0, 2: 3."),
        ("mindmodel", Fact(text="0.0.9"), "Install the same on every node."),
        ("mindspore", Fact(text="2.8.0"), "mindspore: 2.8.0; nodes 0, 2: 2.9.0. Use the same environment"),
        ("numpy", Fact(text="absent", fault="numpy is not installed."), "numpy: numpy is not installed."),
        ("code", Fact(text="0123"), "code: 0123; nodes 0, 2: "),
        ("device", Fact(text="Ascend"), "device: Ascend; nodes 0, 2: CPU. Set runtime.device"),
        ("CANN", Fact(text="8.5.0"), "CANN: 8.5.0; nodes 0, 2: none. Install the same"),
        ("kernels", Fact(text="native"), "kernels: native; nodes 0, 2: graph. Set runtime.cpu_kernels=graph"),
        ("data", Fact(text="not visible", fault="data/corpus: nothing there."), "data: data/corpus: nothing there."),
        ("data", Fact(text="0123"), "Names or sizes of files differ: mount or copy the same on every node."),
        ("free disk", Fact(text="0.1 GiB", fault="0.1 GiB, too little."), "free disk: 0.1 GiB, too little."),
        ("free memory", Fact(text="0.1 GiB", fault="0.1 GiB, too little."), "free memory: 0.1 GiB, too little."),
        ("devices", Fact(text="7 of 8", fault="7 are visible."), "devices: 7 are visible."),
        ("chips", Fact(text="7 of 8 OK", fault="3 Alarm."), "chips: 3 Alarm."),
    ],
)
def test_what_differs_on_a_node_is_named_on_all_nodes(row, fact, told, recipe, check_on, only_on):
    only_on(1, row, fact)
    printed = {line for code, text in check_on(recipe, recipe, recipe) if code == 1 for line in [text.split("\n\n")[1]]}
    assert len(printed) == 1
    [line] = printed.pop().splitlines()
    assert line.startswith(f"! node 1 ({socket.gethostname()}), {row}: ") and told in line


def test_another_recipe_is_named_with_the_keys_that_differ(recipe, check_on):
    other = replace(recipe, train=replace(recipe.train, seed=7), log=replace(recipe.log, every=3))
    (code, printed), _ = check_on(recipe, other)
    assert code == 1
    assert "; node 0: " in printed
    assert "train.seed is 7, there 1; log.every is 3, there 10. Start the same recipe with the same key" in printed


def test_a_clock_that_is_off_is_told_with_how_much(recipe, check_on, monkeypatch):
    async def clock(_link):
        return Clock(ahead_s=-3.25, error_s=0.01)

    monkeypatch.setattr(visit, "_clock", clock)
    (code, printed), _ = check_on(recipe, recipe)
    assert code == 1 and "clock: is -3.250 s off node 0's, more than 1 s. Set it by NTP." in printed


def test_a_slow_link_is_no_wrong_clock():
    assert check._clock(Clock(ahead_s=1.5, error_s=0.6)).fault == ""


def test_a_folder_that_is_not_shared_is_told_by_processes_in_different_folders(recipe, port, tmp_path):
    script = (
        "import sys, yaml\n"
        "from mindmodel.preflight import check\n"
        "from mindmodel.parallel.nodes import Nodes\n"
        "from mindmodel.recipe.load import load_run_recipe\n"
        "from mindmodel.terminal import Terminal\n"
        "check.TOKEN_LIMIT_S = 0.2\n"
        f"nodes = Nodes(count=2, rank=int(sys.argv[1]), master='127.0.0.1', port={port})\n"
        "sys.exit(check.check(load_run_recipe(sys.argv[2]), nodes, Terminal(), 20))\n"
    )
    recipe = replace(recipe, runtime=replace(recipe.runtime, output="runs/tests"))
    (tmp_path / "recipe.yaml").write_text(recipe_to_yaml(recipe))
    running = []
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        running.append(subprocess.Popen(
            [sys.executable, "-c", script, str(rank), tmp_path / "recipe.yaml"], cwd=tmp_path / str(rank),
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
        ))
    printed = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [1, 1]
    assert table(printed[0]) == table(printed[1])
    assert f"run folder: {tmp_path / '1'}: is not the folder that node 0 has under this name" in printed[0]
    assert not list(tmp_path.glob("*/.*"))


def test_a_folder_that_cannot_be_written_is_told(recipe, check_on, monkeypatch):
    monkeypatch.setattr(check.os, "access", lambda path, mode: False)
    (code, printed), _ = check_on(recipe, recipe)
    assert code == 1 and ", run folder: " in printed and "cannot be written. Choose another runtime.output." in printed


def test_where_node_0_can_make_no_file_nobody_looks_for_one(tmp_path):
    (tmp_path / "file").write_text("")
    with check._token(tmp_path / "file") as token:
        assert token is None
    assert check._shared(tmp_path, None).fault == ""


@pytest.mark.parametrize("token", ["../../etc/passwd", 7, ".mindmodel-check-0"])
def test_a_name_that_node_0_would_not_give_is_not_looked_for(token, tmp_path):
    assert check._shared(tmp_path, token) == Fact(text="not compared")


def test_a_taken_port_is_told_by_a_single_node(recipe, port):
    stream = io.StringIO()
    with socket.create_server(("127.0.0.1", port)):
        assert check.check(recipe, Nodes(port=port), Terminal(stream)) == 1
    assert f"port: --master 127.0.0.1:{port}: another program has this port." in stream.getvalue()
    assert check.check(recipe, Nodes(port=port), Terminal(io.StringIO())) == 0


def test_the_port_that_launchers_take_beside_the_schedulers_must_be_free_on_node_0(recipe, check_on, port):
    with socket.create_server(("127.0.0.1", port + 1)):
        (code, printed), _ = check_on(recipe, recipe)
    assert code == 1 and f"port: --master 127.0.0.1:{port + 1}: another program has this port." in printed


@pytest.mark.parametrize("verdict", [{}, {"fit": 1, "lines": []}, {"fit": True, "lines": "x"}])
def test_a_verdict_that_is_none_is_refused(verdict):
    with pytest.raises(LaunchError, match="node 0 gave a verdict that is none. Install the same mindmodel"):
        check._show(verdict, Terminal(io.StringIO()))


def test_a_verdict_cannot_change_the_terminal():
    stream = io.StringIO()
    assert check._show({"fit": True, "lines": ["\x1b[2Jwell"]}, Terminal(stream)) == 0
    assert "\x1b" not in stream.getvalue()


def test_mindspore_is_not_imported():
    code = "import sys, mindmodel.preflight.check; print({'mindspore', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr
