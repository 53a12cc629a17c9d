"""Several nodes of a job, each with a launcher of its own."""

from __future__ import annotations

import os
import signal
import socket
import time

STEPS = "saves_on_a_signal(); beat('step', 1); print('ready', flush=True); forever()"


def two_nodes(job, port, worker, **options):
    return [
        job.start(worker, workers=4, nodes=2, node=node, port=port, run=f"machine_{node}", **options) for node in (1, 0)
    ][::-1]


def wait_for_all(nodes):
    for node, ranks in zip(nodes, ((0, 1), (2, 3))):
        for rank in ranks:
            node.wait_for("ready", rank)


def test_nodes_meet_and_end_together(job, free_port):
    first, second = two_nodes(job, free_port, "print(f'rank {rank} of {here.num_ranks}'); time.sleep(1.5 * (rank < 2))")
    assert first.end()[::2] == second.end()[::2] == (0, "")
    assert (second.logs / "worker_3.log").read_text() == "rank 3 of 4\n"
    assert not (second.logs / "rank_0.heartbeat").exists()


def test_the_first_failure_of_all_nodes_is_named_on_every_node(job, free_port):
    nodes = two_nodes(
        job, free_port,
        """
        if rank == 0:
            fail(TrainingError("connection lost"), 3)
        if rank == 3:
            time.sleep(0.8)
            fail(ValueError("the cause"), 3)
        forever()
        """,
    )
    for node in nodes:
        code, _, err = node.end()
        assert code == 3 and "rank 3 on " in err and "failed first: ValueError: the cause" in err


def test_a_killed_launcher_ends_the_other_node(job, free_port):
    first, second = nodes = two_nodes(job, free_port, STEPS)
    wait_for_all(nodes)
    second.send(signal.SIGKILL)
    start = time.monotonic()
    code, _, err = first.end()
    assert code == 3 and time.monotonic() - start < 10
    assert "node 1 on " in err and "its launcher is gone" in err


def test_a_killed_node_0_ends_the_others(job, free_port):
    first, second = nodes = two_nodes(job, free_port, STEPS)
    wait_for_all(nodes)
    first.send(signal.SIGKILL)
    code, _, err = second.end()
    assert code == 3 and "node 0 on " in err and "its launcher is gone" in err


def test_a_signal_to_one_node_stops_all(job, free_port):
    first, second = nodes = two_nodes(job, free_port, STEPS)
    wait_for_all(nodes)
    second.send(signal.SIGTERM)
    (code, out, _), (second_code, second_out, _) = [node.end() for node in nodes]
    assert code == second_code == 130
    assert "SIGTERM on node 1: the ranks stop" in out and "SIGTERM: the ranks stop" in second_out
    assert "saved" in (first.logs / "worker_0.log").read_text()


def test_a_signal_to_a_node_that_is_still_starting_stops_all(job, free_port):
    options = {"workers": 2, "nodes": 2, "port": free_port}
    first = job.start("forever()", node=0, run="a", **options)
    second = job.start("forever()", node=1, run="b", msrun_options=("--linger", "100"), **options)
    second.wait_for("", rank=1)
    second.send(signal.SIGTERM)
    assert second.end()[0] == 130
    code, out, err = first.end()
    assert (code, err) == (130, "") and "SIGTERM on node 1: the ranks stop" in out


def test_an_msrun_that_fails_on_one_node_is_told_on_all(job, free_port):
    first = job.start("forever()", workers=2, nodes=2, node=0, port=free_port, run="a")
    second = job.start("", workers=2, nodes=2, node=1, port=free_port, run="b", task=("broken",))
    assert second.end()[0] == 2
    code, _, err = first.end()
    assert code == 3 and "node 1 on " in err and "failed first: msrun could not start the processes" in err


def test_a_rank_that_hangs_on_another_node_shows_its_stack_on_all(job, free_port):
    nodes = two_nodes(
        job, free_port,
        """
        def the_place_where_it_hangs():
            forever()
        beat("step", 5)
        time.sleep(0.3)
        if rank != 2:
            beat("step", 6)
        the_place_where_it_hangs()
        """,
        hang_limit_s=3,
        scheduler_s=1000,
    )
    for node in nodes:
        code, _, err = node.end()
        assert code == 3 and "rank 2 on " in err and "hangs: phase 'step' of step 5" in err
        assert "in the_place_where_it_hangs" in err


def test_a_node_that_never_comes_is_named_at_the_time_limit(job, free_port):
    code, _, err = job("", workers=3, nodes=3, port=free_port, timeout_s=1)
    assert code == 2 and "nodes 1, 2 of 3 did not come within 1 s" in err
    assert not (job.nodes[0].logs / "worker_0.log").exists()


def test_a_node_0_that_never_comes_is_named_at_the_time_limit(job, free_port):
    code, _, err = job("", nodes=2, node=1, port=free_port, timeout_s=1)
    assert code == 2 and f"node 0 did not answer at 127.0.0.1:{free_port + 1} within 1 s" in err


def test_another_recipe_on_one_node_is_refused_on_all(job, free_port):
    first = job.start("", nodes=2, node=0, port=free_port, run="a")
    second = job.start(
        "", nodes=2, node=1, port=free_port, run="b", recipe={"train": {"steps": 2, "tokens_per_step": 64}}
    )
    for node in (first, second):
        code, _, err = node.end()
        assert code == 2 and "node 1 (" in err and "has another recipe than node 0: train.steps: 1 -> 2" in err


def test_two_nodes_with_one_number_are_refused(job, free_port):
    ranks = {"a": 0, "b": 1, "c": 1}
    nodes = [job.start("", workers=3, nodes=3, node=rank, port=free_port, run=run) for run, rank in ranks.items()]
    ends = [node.end() for node in nodes]
    assert [code for code, _, _ in ends] == [2, 2, 2]
    assert "two nodes say --node-rank 1" in ends[0][2]


def test_another_number_of_nodes_is_refused(job, free_port):
    first = job.start("", workers=2, nodes=2, node=0, port=free_port, run="a")
    second = job.start("", workers=3, nodes=3, node=1, port=free_port, run="b")
    for node in (first, second):
        code, _, err = node.end()
        assert code == 2 and "has other nodes than --nodes 2" in err


def test_a_node_that_left_may_come_again(job, free_port):
    nodes = {rank: job.start("", workers=3, nodes=3, node=rank, port=free_port, run=f"{rank}") for rank in (0, 1)}
    time.sleep(1.5)
    nodes[1].send(signal.SIGTERM)
    assert nodes[1].end()[0] == 130
    again = [job.start("", workers=3, nodes=3, node=rank, port=free_port, run=f"{rank}") for rank in (1, 2)]
    assert [node.end()[0] for node in (nodes[0], *again)] == [0, 0, 0]


def test_a_node_may_wait_for_the_others_for_longer_than_it_may_be_silent(job, free_port):
    options = {"workers": 3, "nodes": 3, "port": free_port, "silence_s": 1.5}
    early = [job.start("time.sleep(2)", node=rank, run=f"{rank}", **options) for rank in (0, 1)]
    time.sleep(2.5)
    late = job.start("time.sleep(2)", node=2, run="2", **options)
    assert [node.end()[0] for node in (*early, late)] == [0, 0, 0]


def test_a_node_that_falls_silent_is_taken_for_gone(job, free_port):
    nodes = two_nodes(job, free_port, STEPS, silence_s=2)
    wait_for_all(nodes)
    nodes[1].send(signal.SIGSTOP)
    code, _, err = nodes[0].end()
    nodes[1].send(signal.SIGKILL)
    assert code == 3 and "node 1 on " in err and "its launcher is gone" in err


def test_a_taken_port_of_the_launchers_is_refused(job, free_port):
    with socket.socket() as other:
        other.bind(("127.0.0.1", free_port + 1))
        other.listen()
        code, _, err = job("", nodes=2, node=0, port=free_port)
    assert code == 2 and f"the launcher cannot listen on 127.0.0.1:{free_port + 1}" in err


def test_strangers_at_the_port_are_sent_away(job, free_port):
    first = job.start("", nodes=2, node=0, port=free_port, run="a")
    for words in (b"GET / HTTP/1.0\r\n\r\n", b'["hello"]\n', b"x" * 300_000, b'{"stop": 1}\n'):
        connection = None
        while connection is None:
            try:
                connection = socket.create_connection(("127.0.0.1", free_port + 1))
            except OSError:
                time.sleep(0.05)
        with connection:
            connection.settimeout(5)
            try:
                connection.sendall(words)
                assert connection.recv(1) == b""
            except ConnectionError:
                pass
    second = job.start("", nodes=2, node=1, port=free_port, run="b")
    assert first.end()[0] == second.end()[0] == 0


def test_a_second_scheduler_on_one_machine_is_ended(job, free_port):
    nodes = two_nodes(job, free_port, STEPS, scheduler_s=1000)
    wait_for_all(nodes)
    roles = [open(f"/proc/{pid}/environ").read() for node in nodes for pid in node.pids()]
    assert sum("MS_ROLE=MS_SCHED" in role for role in roles) == 1
    os.kill(nodes[0].process.pid, signal.SIGTERM)
    assert [node.end()[0] for node in nodes] == [130, 130]
