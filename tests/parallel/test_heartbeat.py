"""Signs of life, stacks on a signal, and processes that do not outlive their launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mindmodel.parallel.heartbeat import (
    LINE_SIZE,
    PHASES,
    Heartbeat,
    heartbeat_file,
    heartbeat_of_this_process,
    read_heartbeat,
)

ROOT = Path(__file__).parents[2]
PRELUDE = "import os, signal, subprocess, sys, time\nfrom mindmodel.parallel.heartbeat import *\n"


def python(code: str, **environment) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, start_new_session=True,
    )


@pytest.mark.parametrize("phase", PHASES)
def test_the_last_sign_of_life_is_read_back(tmp_path, phase):
    heartbeat = Heartbeat(tmp_path / "rank_0.heartbeat")
    heartbeat.beat("evaluating", 123456)
    heartbeat.beat(phase, 7)
    beat = read_heartbeat(tmp_path / "rank_0.heartbeat")
    assert (beat.phase, beat.step, beat.pid) == (phase, 7, os.getpid())
    assert abs(beat.time_s - time.time()) < 5 and beat.host


def test_the_file_does_not_grow(tmp_path):
    path = tmp_path / "rank_0.heartbeat"
    heartbeat = Heartbeat(path)
    for step in range(100):
        heartbeat.beat("step", step)
    assert path.stat().st_size == LINE_SIZE


@pytest.mark.parametrize(
    "damage", [lambda line: line[:-1], lambda line: line + b"x", lambda line: b"\0" * len(line),
               lambda line: line.replace(b"step", b"nope"), lambda line: line.replace(b"step 3", b"step x"),
               lambda line: line.replace(b"step", b"\xff\xff\xff\xff"), lambda line: b""]
)
def test_a_damaged_sign_of_life_is_none(tmp_path, damage):
    path = tmp_path / "rank_0.heartbeat"
    Heartbeat(path).beat("step", 3)
    path.write_bytes(damage(path.read_bytes()))
    assert read_heartbeat(path) is None


def test_a_missing_sign_of_life_is_none(tmp_path):
    assert read_heartbeat(tmp_path / "rank_0.heartbeat") is None


def test_a_launched_rank_writes_its_own(tmp_path, monkeypatch):
    for name, value in {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": "5", "MS_WORKER_NUM": "8"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MINDMODEL_HEARTBEATS", str(tmp_path))
    heartbeat_of_this_process().beat("step", 9)
    assert read_heartbeat(heartbeat_file(tmp_path, 5)).step == 9


def test_others_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINDMODEL_HEARTBEATS", raising=False)
    heartbeat_of_this_process().beat("step", 9)
    monkeypatch.setenv("MINDMODEL_HEARTBEATS", str(tmp_path))
    monkeypatch.setenv("MS_ROLE", "MS_SCHED")
    heartbeat_of_this_process().beat("step", 9)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_does_not_stop_the_training(monkeypatch, tmp_path):
    heartbeat = Heartbeat(tmp_path / "rank_0.heartbeat")
    monkeypatch.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    heartbeat.beat("step", 1)


def test_a_signal_shows_the_stacks_of_all_threads():
    process = python(
        "import threading\ndump_stacks_on_signal()\n"
        "def in_a_thread(): time.sleep(60)\n"
        "threading.Thread(target=in_a_thread, daemon=True).start()\n"
        "def deep_down(): print('ready', flush=True); time.sleep(60)\n"
        "deep_down()"
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR2)
    time.sleep(0.3)
    process.kill()
    shown = process.communicate()[1]
    assert "in deep_down" in shown and "in in_a_thread" in shown


def test_a_process_that_was_not_launched_attaches_to_nobody():
    process = python("attach_to_launcher(); print(signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL)")
    assert process.communicate()[0] == "True\n" and process.returncode == 0


def test_a_process_whose_launcher_is_gone_ends_at_once():
    gone = subprocess.Popen(["true"])
    gone.wait()
    process = python("attach_to_launcher(); print('lives')", MINDMODEL_LAUNCHER=str(gone.pid))
    assert process.communicate()[0] == "" and process.returncode == -signal.SIGKILL


def test_a_process_ends_with_its_launcher_and_waits_until_msrun_has_left():
    worker = PRELUDE + "attach_to_launcher(); print(os.getpid(), os.getppid(), flush=True); time.sleep(60)"
    msrun = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {worker!r}]); time.sleep(0.4)"
    launcher = python(
        "import ctypes\nctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\nos.environ['MINDMODEL_LAUNCHER'] = str(os.getpid())\n"
        f"subprocess.Popen([sys.executable, '-c', {msrun!r}]).wait()\ntime.sleep(60)"
    )
    pid, parent = map(int, launcher.stdout.readline().split())
    assert parent == launcher.pid
    launcher.kill()
    end = time.monotonic() + 5
    while Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < end
        time.sleep(0.01)
    launcher.communicate()


def test_what_a_worker_starts_is_not_attached():
    code = "attach_to_launcher(); print('MINDMODEL_LAUNCHER' in os.environ)"
    assert python(code, MINDMODEL_LAUNCHER=str(os.getpid())).communicate()[0] == "False\n"
