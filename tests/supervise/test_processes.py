"""Processes that are found, waited for and ended by id, all below a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from command import ROOT

PRELUDE = """
import os, signal, sys, time
from pathlib import Path
from mindmodel.supervise import processes as module
from mindmodel.supervise.processes import Processes, environment_of
log = Path("log")
shell = lambda line: ("sh", "-c", line)
def until(condition):
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
"""


def run(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code], cwd=folder, capture_output=True, text=True, timeout=30,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_exits_are_noted_with_code_or_signal(tmp_path):
    shown = run(
        """
with Processes() as processes:
    pids = [processes.start(shell(line), os.environ, log) for line in ("exit 0", "exit 7", "kill -9 $$")]
    until(lambda: (processes.reap(), set(pids) <= set(processes.exits))[1])
    print([processes.exits[pid].code for pid in pids])
""", tmp_path)
    assert shown == "[0, 7, -9]\n"


def test_orphans_are_inherited_and_ended(tmp_path):
    shown = run(
        """
with Processes() as processes:
    pid = processes.start(shell("sleep 1000 & setsid sleep 1000 & MARK=me sleep 1000 & sleep 0.3"), os.environ, log)
    until(lambda: len(processes.children(of=pid)) == 4)
    until(lambda: (processes.reap(), pid in processes.exits)[1])
    orphans = processes.children()
    print(len(orphans), sum(environment_of(pid).get("MARK") == "me" for pid in orphans))
    print(processes.end_all(), processes.children())
""", tmp_path)
    assert shown == "3 1\n[] []\n"


def test_what_the_kernel_does_not_let_go_is_told(tmp_path):
    shown = run(
        """
module.END_LIMIT_S = 0.1
with Processes() as processes:
    pid = processes.start(shell("sleep 1000"), os.environ, log)
    processes.end = lambda pids: None
    print(processes.end_all() == [pid])
    del processes.end
""", tmp_path)
    assert shown == "True\n"


def test_signals_go_to_those_that_live(tmp_path):
    shown = run(
        """
with Processes() as processes:
    gone, alive = (processes.start(shell(line), os.environ, log) for line in ("exit 0", "sleep 1000"))
    until(lambda: (processes.reap(), gone in processes.exits)[1])
    processes.send([gone, alive], signal.SIGTERM)
    until(lambda: (processes.reap(), alive in processes.exits)[1])
    print(processes.exits[alive].code)
""", tmp_path)
    assert shown == "-15\n"


def test_temporary_files_are_in_a_folder_that_goes_with_them(tmp_path):
    run(
        """
with Processes() as processes:
    pid = processes.start(shell("touch $TMPDIR/here; ls $TMPDIR"), os.environ, log)
    until(lambda: (processes.reap(), pid in processes.exits)[1])
assert log.read_text() == "here\\n"
""", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_process_that_is_gone_has_no_environment(tmp_path):
    assert run("print(environment_of(2**22 + 1))", tmp_path) == "{}\n"
