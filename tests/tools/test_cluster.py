"""The cluster examples start a launcher on every node, pass on what they are told, and let runs be saved.

Each is run as it stands, with stand-ins for ssh, srun, scontrol, kubectl and mindmodel on PATH. The nodes are processes
that meet at addresses of the loopback range.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLUSTER, FAKES = ROOT / "tools" / "cluster", Path(__file__).parent / "fakes"
HOSTS = ["127.0.0.1", "127.0.0.2"]
ARGUMENTS = ["recipes/my model.yaml", "train.steps=20", "data.source=['a b', \"c'd\"]", "--check", "$HOME"]


class Cluster:
    """A folder to start examples in, and what the nodes noted in it."""

    def __init__(self, folder: Path, port: int):
        self.folder, self.port, self.hosts = folder, port, HOSTS
        (folder / "bin").mkdir()
        for fake in FAKES.glob("*.py"):
            command = folder / "bin" / fake.stem
            command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{fake}" "$@"\n')
            command.chmod(0o755)
        self.env = {**os.environ, "PATH": f"{folder / 'bin'}:/usr/bin:/bin", "FAKE_RECORD": str(folder)}

    def start(self, *command, **env) -> subprocess.Popen:
        self.process = subprocess.Popen(
            list(map(str, command)), cwd=self.folder, env={**self.env, **env}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )
        return self.process

    def run(self, *command, **env) -> int:
        return self.end(self.start(*command, **env))

    def end(self, process: subprocess.Popen) -> int:
        self.printed, _ = process.communicate(timeout=60)
        return process.returncode

    def node(self, rank: int) -> dict:
        return json.loads((self.folder / f"node_{rank}.json").read_text())

    def wait_for_nodes(self, count: int = 2) -> None:
        """Until all have met."""
        end = time.monotonic() + 30
        while len(list(self.folder.glob("node_*.json"))) < count:
            assert time.monotonic() < end and self.process.poll() is None, "the nodes never met"
            time.sleep(0.02)

    def assert_all_were_started(self, master: str, arguments=ARGUMENTS) -> None:
        """Both nodes, each with its number, at its own address, with all arguments as they were typed."""
        for rank, host in enumerate(self.hosts):
            node = self.node(rank)
            options = ["launch", "--nodes", "2", "--node-rank", str(rank), "--master", master]
            assert node["arguments"] == [*options, *arguments] and node["address"] == host
        assert self.node(0)["heard"] == self.hosts[1:]


@pytest.fixture
def cluster(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    folder = tmp_path / "a folder's"
    folder.mkdir()
    cluster = Cluster(folder, port)
    yield cluster
    left = subprocess.run(["pgrep", "-f", str(folder)], capture_output=True, text=True).stdout
    assert left == "", f"left behind: {left}"


@pytest.fixture
def ssh(cluster):
    """Function: start ssh.sh with a host file."""
    (cluster.folder / "hosts").write_text("# two nodes\n127.0.0.1\n\nme@127.0.0.2\n")
    return lambda *arguments, **env: cluster.start(
        CLUSTER / "ssh.sh", "hosts", *arguments, **{"PORT": str(cluster.port), **env}
    )


@pytest.fixture
def slurm(cluster):
    """Function: start slurm.sbatch as Slurm does; gives the master it will name."""
    job = {"SLURM_JOB_NODELIST": ",".join(HOSTS), "SLURM_NNODES": "2", "SLURM_JOB_ID": str(cluster.port)}
    cluster.master = f"127.0.0.1:{20000 + 2 * (cluster.port % 5000)}"
    return lambda *arguments, **env: cluster.start(CLUSTER / "slurm.sbatch", *arguments, **{**job, **env})


@pytest.fixture
def volcano(cluster):
    """Function: create volcano.yaml."""
    # the port is the launcher's default, so the addresses are the test's own
    cluster.hosts = [f"127.{number}.{cluster.port >> 8}.{cluster.port & 255}" for number in (71, 72)]
    return lambda **env: cluster.start(
        "kubectl", "create", "-f", CLUSTER / "volcano.yaml", **{"FAKE_ADDRESSES": ",".join(cluster.hosts), **env}
    )


def test_ssh_starts_every_host_of_the_file_in_this_folder(cluster, ssh):
    assert cluster.end(ssh(*ARGUMENTS)) == 0, cluster.printed
    cluster.assert_all_were_started(f"127.0.0.1:{cluster.port}")
    assert cluster.node(0)["cwd"] == cluster.node(1)["cwd"] == str(cluster.folder)


def test_ssh_enters_the_environment_that_it_is_told(cluster, ssh):
    assert cluster.end(ssh("r.yaml", REMOTE_SETUP="export FAKE_EXIT='1=7'")) == 7


def test_slurm_starts_a_task_on_every_node(cluster, slurm):
    assert cluster.end(slurm(*ARGUMENTS)) == 0, cluster.printed
    cluster.assert_all_were_started(cluster.master)


def test_volcano_starts_a_pod_for_every_node(cluster, volcano):
    assert cluster.end(volcano()) == 0, cluster.printed
    cluster.assert_all_were_started(
        cluster.hosts[0], [
            "/opt/mindmodel/recipes/llama/1b_64.yaml", "parallel.shard_optimizer=none", "runtime.output=/shared/runs/1b"
        ]
    )


@pytest.mark.parametrize("example", ["ssh", "slurm"])
def test_the_real_check_compares_two_nodes(example, cluster, request):
    start = request.getfixturevalue(example)
    (cluster.folder / "bin" / "mindmodel").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mindmodel "$@"\n')
    recipe = ROOT / "recipes" / "cpu" / "tiny.yaml"
    running = start(recipe, "parallel.dp=2", "runtime.device=cpu", "--check", "--timeout", "30", PYTHONPATH=str(ROOT))
    assert cluster.end(running) == 0, cluster.printed
    assert cluster.printed.count("nodes 0-1") == cluster.printed.count("all is well") == 2


@pytest.mark.parametrize("example", ["ssh", "slurm", "volcano"])
@pytest.mark.parametrize("codes, code", [("0=3 1=2", 3), ("1=1", 1), ("0=2", 2)])
def test_one_nodes_failure_is_the_jobs(example, codes, code, cluster, request):
    start = request.getfixturevalue(example)
    arguments = [] if example == "volcano" else ["r.yaml"]
    assert cluster.end(start(*arguments, FAKE_EXIT=codes)) == code, cluster.printed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_ssh_reaches_every_launcher_once_and_they_save(number, cluster, ssh):
    running = ssh("r.yaml", FAKE_STAY="1")
    cluster.wait_for_nodes()
    os.killpg(running.pid, number) if number == signal.SIGINT else running.send_signal(number)
    assert cluster.end(running) == 130, cluster.printed
    assert [cluster.node(rank)["signals"] for rank in range(2)] == [["SIGTERM"]] * 2


def test_when_the_machine_of_ssh_is_gone_the_launchers_save(cluster, ssh):
    running = ssh("r.yaml", FAKE_STAY="1")
    cluster.wait_for_nodes()
    running.kill()
    end = time.monotonic() + 20
    while [cluster.node(rank)["signals"] for rank in range(2)] != [["SIGTERM"]] * 2:
        assert time.monotonic() < end
        time.sleep(0.05)
    cluster.end(running)


def test_a_second_ctrl_c_does_not_wait(cluster, ssh):
    running = ssh("r.yaml", FAKE_STAY="1")
    cluster.wait_for_nodes()
    running.send_signal(signal.SIGINT)
    time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    assert running.wait(10) == 130
    cluster.end(running)


def test_a_host_that_ssh_does_not_reach_stops_the_others(cluster, ssh):
    (cluster.folder / "hosts").write_text("127.0.0.1\ndown\n")
    assert cluster.end(ssh("r.yaml")) == 2
    assert "ssh.sh: down, node 1: ssh failed; the other nodes are told to stop" in cluster.printed


def test_before_slurms_time_limit_every_launcher_gets_one_signal_and_saves(cluster, slurm):
    running = slurm("r.yaml", FAKE_STAY="1")
    cluster.wait_for_nodes()
    running.send_signal(signal.SIGUSR1)
    assert cluster.end(running) == 130, cluster.printed
    assert [cluster.node(rank)["signals"] for rank in range(2)] == [["SIGUSR1"]] * 2


def test_scancels_own_signal_is_not_doubled(cluster, slurm):
    running = slurm("r.yaml", FAKE_STAY="1")
    cluster.wait_for_nodes()
    running.send_signal(signal.SIGTERM)  # to the script
    for pid in subprocess.run(["pgrep", "-f", "--", "--node-rank"], capture_output=True, text=True).stdout.split():
        command = Path(f"/proc/{pid}/environ").read_bytes()
        if os.fsencode(cluster.folder) in command and b"mindmodel.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(int(pid), signal.SIGTERM)  # to the tasks
    assert cluster.end(running) == 130, cluster.printed
    assert [cluster.node(rank)["signals"] for rank in range(2)] == [["SIGTERM"]] * 2


def test_deleting_volcanos_job_saves(cluster, volcano):
    running = volcano(FAKE_STAY="1")
    cluster.wait_for_nodes()
    running.send_signal(signal.SIGTERM)
    assert cluster.end(running) == 130, cluster.printed
    assert [cluster.node(rank)["signals"] for rank in range(2)] == [["SIGTERM"]] * 2


def test_a_job_of_volcano_that_fails_is_started_again():
    text = (CLUSTER / "volcano.yaml").read_text()
    assert "{event: PodFailed, action: RestartJob}" in text and "{event: PodEvicted, action: RestartJob}" in text


@pytest.mark.parametrize("arguments, told", [
    (["hosts"], "usage: tools/cluster/ssh.sh HOSTFILE RECIPE"),
    (["empty", "r.yaml"], "ssh.sh: the host file names no host. Write one a line."),
    (["missing", "r.yaml"], "ssh.sh: the host file names no host. Write one a line."),
])
def test_a_wrong_use_of_ssh_is_refused(arguments, told, cluster):
    (cluster.folder / "empty").write_text("# nobody\n")
    assert cluster.run(CLUSTER / "ssh.sh", *arguments) == 2
    assert told in cluster.printed


def test_every_example_is_in_the_readme():
    text = (CLUSTER / "README.md").read_text()
    assert all(f"`{path.name}`" in text for path in CLUSTER.iterdir() if path.name != "README.md")
