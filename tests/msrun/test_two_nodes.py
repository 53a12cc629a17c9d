"""Two nodes on one machine: network namespaces with a cable between them, a launch in each."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from command import Running

KEYS = ("train.steps=40",)


class Node:
    """A network namespace; its commands see no other network."""

    def __init__(self, name: str, address: str):
        self.name, self.address = name, address

    def wrap(self, *arguments) -> tuple:
        return ("ip", "netns", "exec", self.name, *arguments)


@pytest.fixture
def nodes():
    """Two of them, that reach each other at their addresses."""
    number = os.getpid() % 250
    pair = [Node(f"mindmodel-{number}-{side}", f"10.213.{number}.{side + 1}") for side in (0, 1)]
    ends = [f"mm{number}e{side}" for side in (0, 1)]
    commands = [["ip", "netns", "add", node.name] for node in pair]
    commands.append(["ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1]])
    for node, end in zip(pair, ends):
        commands.append(["ip", "link", "set", end, "netns", node.name])
        commands.append(list(node.wrap("ip", "address", "add", f"{node.address}/24", "dev", end)))
        commands += [list(node.wrap("ip", "link", "set", name, "up")) for name in (end, "lo")]
    try:
        for command in commands:
            try:
                subprocess.run(command, check=True, capture_output=True, text=True)
            except (OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', '') or error}")
        yield pair
    finally:
        for node in pair:
            subprocess.run(["ip", "netns", "delete", node.name], capture_output=True)


@pytest.fixture
def start(job, nodes):
    """Starts the launch of a node; what still runs at the end is killed."""
    started = []

    def start(rank: int, *more) -> Running:
        arguments = job.arguments("run", 2, *KEYS, "--nodes", 2, "--node-rank", rank, "--master", nodes[0].address)
        running = Running((*arguments, *more), job.folder, job.env, nodes[rank].wrap)
        started.append(running)
        return running

    yield start
    for running in started:
        if running.process.poll() is None:
            running.process.kill()


@pytest.mark.long
def test_two_nodes_train_the_run_of_one(job, start):
    one = job.launch("one", 2, *KEYS)
    assert one.returncode == 0, one.stdout + one.stderr
    launches = [start(rank) for rank in (0, 1)]
    assert [launch.process.wait(180) for launch in launches] == [0, 0], [launch.output for launch in launches]
    assert job.run("run").losses == job.run("one").losses
    assert job.processes() == {}


@pytest.mark.long
def test_a_node_that_is_killed_ends_the_other(job, start):
    launches = [start(rank) for rank in (0, 1)]
    job.worker("run", 1)
    killed = time.monotonic()
    launches[1].process.kill()
    assert launches[0].process.wait(60) == 3, launches[0].output
    assert time.monotonic() - killed < 20
    assert "node 1" in launches[0].output
    end = time.monotonic() + 20
    while job.processes() and time.monotonic() < end:
        time.sleep(0.1)
    assert job.processes() == {}


@pytest.mark.long
def test_a_node_that_never_comes_ends_in_a_message_at_the_time_limit(job, start):
    launch = start(0, "--timeout", 5)
    assert launch.process.wait(60) in (2, 3), launch.output
    assert "node 1" in launch.output and "5 s" in launch.output
    assert job.processes() == {}


@pytest.mark.long
def test_a_signal_to_one_node_saves_and_ends_both(job, start):
    launches = [start(rank, "train.steps=2000") for rank in (0, 1)]
    job.worker("run", 1)
    launches[1].process.send_signal(signal.SIGTERM)
    assert [launch.process.wait(60) for launch in launches] == [130, 130], [launch.output for launch in launches]
    assert len(job.run("run").steps) == 1 and job.processes() == {}


@pytest.mark.long
def test_another_recipe_on_one_node_is_refused_on_both(start):
    launches = [start(0), start(1, "optim.peak_lr=1e-4")]
    assert [launch.process.wait(120) for launch in launches] == [2, 2], [launch.output for launch in launches]
    assert all("recipe" in launch.output for launch in launches)
