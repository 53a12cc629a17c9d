"""Launched runs from start to end, with workers that do what a test says."""

from __future__ import annotations

import os
import signal
import time

import pytest


def test_a_run_that_ends_well_shows_rank_0s_lines(job):
    code, out, err = job("print(f'rank {rank} of {here.num_ranks} is done')")
    assert (code, err) == (0, "")
    assert "rank 0 of 2 is done" in out and "rank 1" not in out


def test_mindspores_own_lines_stay_in_the_log(job):
    code, out, _ = job("print('[WARNING] CORE(1,2,python):2026-01-01 [a.cc:1] F] words')")
    assert code == 0 and "words" not in out
    assert "words" in (job.nodes[0].logs / "worker_0.log").read_text()


def test_a_killed_worker_is_named_and_all_end_within_ten_seconds(job):
    node = job.start("beat('step', 3); print('ready', flush=True); forever()", scheduler_s=1000)
    node.wait_for("ready", rank=1)
    start = time.monotonic()
    os.kill(node.pid_of(1), signal.SIGKILL)
    code, _, err = node.end()
    assert code == 3 and time.monotonic() - start < 10
    assert "rank 1 on " in err and "failed first: killed by SIGKILL, which mindmodel did not send" in err
    assert node.pids() == []


def test_a_scheduler_that_ends_too_early_is_named_and_all_end(job):
    code, _, err = job("beat('step', 3); forever()", scheduler_s=0.1)
    assert code == 3 and "scheduler" in err and "ended while it was still needed" in err


def test_the_first_error_wins_over_a_lost_connection_that_exited_earlier(job):
    code, _, err = job(
        """
        if rank == 0:
            fail(TrainingError("MindSpore failed: connection to rank 1 reset by peer"), 3)
        time.sleep(1)
        print("before it")
        fail(TrainingError("loss nan: not finite"), 3)
        """
    )
    assert code == 3
    assert "rank 1 on " in err and "failed first: TrainingError: loss nan: not finite" in err
    assert "before it" in err and "worker_1.log" in err


def test_a_rank_that_has_said_why_but_not_ended_is_found(job):
    code, _, err = job(
        """
        if rank == 0:
            report_error(ValueError("the cause"))
            forever()
        time.sleep(0.3)
        fail(TrainingError("peer closed"), 3)
        """
    )
    assert code == 3 and "rank 0 on " in err and "failed first: ValueError: the cause" in err


def test_bad_input_is_one_message_and_exit_code_2(job):
    code, _, err = job("fail(DataError('data/corpus: there is no such folder.'), 2)")
    assert code == 2 and "DataError: data/corpus: there is no such folder." in err


def test_a_worker_that_is_gone_at_once_is_known_by_its_log(job):
    code, _, err = job("", task=("sh", "-c", "[ $MS_ROLE = MS_SCHED ] || { echo no such program; exit 4; }"))
    assert code == 3 and "rank 0 on " in err and "no such program" in err


def test_a_worker_that_is_killed_before_msrun_has_left_is_missed(job):
    node = job.start("forever()", scheduler_s=1000, msrun_options=("--linger", "1.5"))
    end = time.monotonic() + 10
    while len(pids := node.workers()) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(pids[0], signal.SIGKILL)
    code, _, err = node.end()
    assert code == 3 and "rank 0 on " in err and "failed first: ended as soon as it was started" in err


def test_a_rank_that_is_saving_may_finish_before_all_are_ended(job):
    node = job.start(
        """
        if rank == 0:
            saves_on_a_signal()
            beat("saving", 7)
            time.sleep(2.5)
            print("saved step 7", flush=True)
            beat("step", 8)
            forever()
        time.sleep(0.5)
        fail(ValueError("no"), 3)
        """
    )
    assert node.end()[0] == 3
    assert "saved" in (node.logs / "worker_0.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_lets_every_worker_save(job, number):
    node = job.start("saves_on_a_signal(); beat('step', 1); print('ready', flush=True); forever()")
    for rank in (0, 1):
        node.wait_for("ready", rank)
    node.send(number)
    code, out, err = node.end()
    assert (code, err) == (130, "")
    assert f"{number.name}: the ranks stop after their step and save" in out and "saved" in out
    assert "saved" in (node.logs / "worker_1.log").read_text()


def test_a_signal_to_one_worker_stops_all(job):
    node = job.start("saves_on_a_signal(); beat('step', 1); print('ready', flush=True); forever()")
    for rank in (0, 1):
        node.wait_for("ready", rank)
    os.kill(node.pid_of(1), signal.SIGTERM)
    code, out, _ = node.end()
    assert code == 130 and "a rank received a signal" in out and "saved" in out


def test_the_second_signal_ends_all_at_once(job):
    node = job.start("saves_on_a_signal(100); beat('step', 1); print('ready', flush=True); forever()")
    for rank in (0, 1):
        node.wait_for("ready", rank)
    node.send(signal.SIGINT)
    time.sleep(0.5)
    node.send(signal.SIGINT)
    start = time.monotonic()
    code, out, _ = node.end()
    assert code == 130 and time.monotonic() - start < 2
    assert "ended at once: nothing was saved since the last line that says so." in out


def test_a_signal_before_the_first_step_saves_nothing(job):
    node = job.start("beat('compiling', 0); print('ready', flush=True); forever()")
    for rank in (0, 1):
        node.wait_for("ready", rank)
    node.send(signal.SIGTERM)
    code, out, _ = node.end()
    assert code == 130 and "interrupted before the first step was done: there was nothing to save." in out


def test_what_workers_have_started_is_ended_too(job):
    node = job.start(
        """
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
        beat("step", 1)
        print("ready", flush=True)
        forever() if rank else sys.exit(5)
        """
    )
    assert node.end()[0] == 3
    assert node.pids() == []


def test_workers_do_not_outlive_a_killed_launcher(job):
    node = job.start("beat('step', 1); print('ready', flush=True); forever()", scheduler_s=1000)
    for rank in (0, 1):
        node.wait_for("ready", rank)
    assert len(node.pids()) == 3
    node.send(signal.SIGKILL)
    node.process.wait()
    assert node.all_gone()


def test_what_workers_have_started_does_not_outlive_a_killed_launcher_either(job):
    node = job.start(
        """
        import tempfile
        tempfile.mkdtemp()
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
        print("ready", flush=True)
        forever()
        """
    )
    for rank in (0, 1):
        node.wait_for("ready", rank)
    node.send(signal.SIGKILL)
    node.process.wait()
    assert node.all_gone()
    time.sleep(0.2)
    assert list(job.temporary.iterdir()) == []


def test_the_same_signal_to_all_processes_lets_them_save(job):
    node = job.start(
        """
        received = []
        def note(number, frame):
            assert number not in received, "the second of a kind ends a worker at once"
            received.append(number)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, note)
        beat("step", 1)
        print("ready", flush=True)
        while len(received) < 2:
            time.sleep(0.05)
        print("saved", flush=True)
        sys.exit(130)
        """
    )
    for rank in (0, 1):
        node.wait_for("ready", rank)
    for pid in (node.process.pid, *(node.pid_of(rank) for rank in (0, 1))):
        os.kill(pid, signal.SIGTERM)
    code, out, _ = node.end()
    assert code == 130 and "saved" in out


def test_signals_of_two_kinds_are_not_an_order_to_end_at_once(job):
    node = job.start("saves_on_a_signal(1.0); beat('step', 1); print('ready', flush=True); forever()")
    for rank in (0, 1):
        node.wait_for("ready", rank)
    node.send(signal.SIGTERM)
    time.sleep(0.3)
    node.send(signal.SIGINT)
    code, out, _ = node.end()
    assert code == 130 and "saved" in out and "ended at once" not in out


def test_a_failing_msrun_is_shown(job):
    code, _, err = job("", task=("broken",))
    assert code == 2
    assert "LaunchError: msrun could not start the processes:" in err and "no such thing" in err


def test_an_msrun_that_hangs_is_told_at_the_time_limit(job):
    code, _, err = job("forever()", msrun_options=("--linger", "100"), timeout_s=2)
    assert code == 2 and "LaunchError: msrun has not started the processes within 2 s." in err


def test_a_master_that_msrun_does_not_find_here_is_refused(job):
    code, _, err = job("forever()", msrun_options=("--no-scheduler",))
    assert code == 2 and "msrun started no scheduler, since '127.0.0.1' is no address of this machine's" in err


def test_logs_that_cannot_be_written_are_one_message(job, tmp_path):
    (tmp_path / "run").write_text("a file")
    code, _, err = job("")
    assert code == 2 and "LaunchError: " in err and "the logs cannot be written: " in err


def test_a_run_is_launched_once_at_a_time(job):
    node = job.start("beat('step', 1); print('ready', flush=True); forever()")
    node.wait_for("ready")
    code, _, err = job("")
    assert code == 2 and "is being launched by another process on this node" in err
    assert "ready" in (node.logs / "worker_0.log").read_text()


def test_the_logs_of_the_launch_before_are_kept(job):
    assert job("print('first')")[0] == job("print('second')")[0] == 0
    logs = job.nodes[0].logs
    assert "first" in (logs / "worker_0.before.log").read_text()
    assert (logs / "worker_0.log").read_text() == "second\n"


def test_temporary_files_of_killed_workers_are_removed(job):
    code, _, _ = job("import tempfile; tempfile.mkdtemp(); beat('step', 1); sys.exit(5) if rank else forever()")
    assert code == 3 and list(job.temporary.iterdir()) == []
