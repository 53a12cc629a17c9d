"""The verb `launch`, with an msrun that starts small workers; `tests/msrun` has the real one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mindmodel.cli.main import main, parse_arguments

ROOT = Path(__file__).parents[2]
RECIPE = """
model: {hidden_size: 32, num_layers: 1, num_heads: 4, ffn_size: 64, vocab_size: 300}
data: {source: text.txt, seq_len: 32, tokenizer_vocab_size: 300}
train: {steps: 20, tokens_per_step: 256}
runtime: {device: cpu}
"""
TEXT = "one two three four five six\n" * 999
MSRUN = """
import os, subprocess, sys
options = dict(word[2:].split("=", 1) for word in sys.argv[1:] if word.startswith("--") and "=" in word)
task = sys.argv[sys.argv.index("python"):]
for rank in range(-1, int(options["local_worker_num"])):
    role, log = ("MS_SCHED", "scheduler.log") if rank < 0 else ("MS_WORKER", f"worker_{rank}.log")
    environment = {**os.environ, "MS_ROLE": role, "MS_NODE_ID": str(rank), "MS_WORKER_NUM": options["worker_num"]}
    with open(os.path.join(options["log_dir"], log), "w") as out:
        worker = [sys.executable, WORKER, *task]
        subprocess.Popen(worker, env=environment, stdout=out, stderr=out, start_new_session=True)
"""

ATTACHED = """
import os, sys
from mindmodel.parallel.heartbeat import attach_to_launcher
attach_to_launcher()  # as training does: a process that ends while msrun lives leaves no exit code
rank = os.environ["MS_NODE_ID"]
"""


@pytest.fixture
def launch(tmp_path):
    """Function: `mindmodel launch` beside an msrun whose workers run these lines."""
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    (tmp_path / "text.txt").write_text(TEXT)
    programs = tmp_path / "bin"
    programs.mkdir()
    start = f"import sys; sys.executable = {str(programs / 'python')!r}; from mindmodel.cli.main import main"

    def run(worker: str, *arguments: str) -> subprocess.CompletedProcess:
        (tmp_path / "worker.py").write_text(f"{ATTACHED}{worker}")
        (programs / "msrun").write_text(f"WORKER = {str(tmp_path / 'worker.py')!r}\n{MSRUN}")
        if not (programs / "python").exists():
            (programs / "python").symlink_to(sys.executable)
        return subprocess.run(
            [sys.executable, "-c", f"{start}; sys.exit(main(['launch', *sys.argv[1:]]))", "tiny.yaml", *arguments],
            cwd=tmp_path, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    return run


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """In the working folder."""
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return "tiny.yaml"


def test_every_rank_runs_the_training_and_rank_0_is_shown(launch, tmp_path):
    done = launch("print(rank, *sys.argv[1:])", "parallel.dp=2", "train.steps=5", "--shrink")
    assert done.returncode == 0, done.stderr
    assert "launching ranks 0 to 1 of 2; meeting at 127.0.0.1:" in done.stdout
    arguments = "python -m mindmodel train tiny.yaml parallel.dp=2 train.steps=5 --shrink\n"
    assert f"0 {arguments}" in done.stdout
    assert (tmp_path / "runs/tiny_small/logs/worker_1.log").read_text() == f"1 {arguments}"


def test_a_failing_rank_is_exit_code_3_with_its_error(launch):
    done = launch("if rank == '1': print('[rank 1 on h at 1.0] ValueError: no'); sys.exit(3)", "parallel.dp=2")
    assert done.returncode == 3
    assert "TrainingError: rank 1 on " in done.stderr and "failed first: ValueError: no" in done.stderr
    assert "runs/tiny/logs/worker_1.log" in done.stderr and "Traceback" not in done.stderr


def test_bad_input_that_a_rank_finds_is_its_one_message(launch):
    worker = "print('[rank 0 on h at 1.0] DataError: no such folder.'); sys.exit(2 if rank == '0' else 0)"
    done = launch("import time; time.sleep(0.5)\n" + worker, "parallel.dp=2")
    assert done.returncode == 2
    assert done.stderr == "DataError: no such folder.\n"


def test_print_shows_a_command_and_writes_nothing(recipe, tmp_path, capsys):
    assert main(["launch", recipe, "parallel.dp=2", "--print"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("env \\\n  PATH=") and "  MINDMODEL_WORKERS_HERE=2 \\\n" in shown
    assert shown.endswith("python -m mindmodel train tiny.yaml parallel.dp=2\n")
    assert "MINDMODEL_LAUNCHER" not in shown
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["parallel.dp=4", "--nodes", "3", "--node-rank", "1", "--master", "127.0.0.1"],
            "LaunchError: recipe 'tiny': 4 workers cannot be shared evenly by 3 nodes. Use 3 or 6",
        ),
        (["parallel.tp=2"], "LayoutError: recipe 'tiny', parallel: tp=2 cannot train here: on CPU only dp"),
        (["--device-ids", "0-1"], "LaunchError: --device-ids 0-1: this run is on CPU"),
        (["--nodes", "2"], "LaunchError: --nodes 2: every node must know its own number"),
        (["--master", "no.such.host.invalid"], "LaunchError: --master: the host 'no.such.host.invalid' is unknown"),
        (["train.steps=none"], "RecipeError: command line, train.steps"),
    ],
)
def test_bad_input_is_one_message_before_anything_is_started(recipe, tmp_path, capsys, arguments, message):
    assert main(["launch", recipe, *arguments]) == 2
    assert capsys.readouterr().err.startswith(message)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_a_port_in_use_is_one_message(recipe, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["launch", recipe, "parallel.dp=2", "--master", f"127.0.0.1:{port}"]) == 2
    assert f"the scheduler cannot listen on 127.0.0.1:{port}: Address already in use" in capsys.readouterr().err


def test_logs_that_cannot_be_written_are_one_message(recipe, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "logs").write_text("a file")
    assert main(["launch", recipe, "parallel.dp=2", "runtime.output=run"]) == 2
    assert "the logs cannot be written: File exists. Choose another runtime.output." in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--timeout", "--hang-limit"])
def test_limits_are_whole_seconds(option, capsys):
    with pytest.raises(SystemExit):
        parse_arguments("launch", ["tiny.yaml", option, "0"])
    assert "0 is less than 1" in capsys.readouterr().err
