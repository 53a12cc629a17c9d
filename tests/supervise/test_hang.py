"""Which rank hangs, if one does."""

from __future__ import annotations

import pytest

from mindmodel.supervise.hang import Sign, hanging_rank, stack_of


def sign(rank, phase="step", step=5, age_s=700.0, stopped=False):
    return Sign(rank=rank, phase=phase, step=step, age_s=age_s, stopped=stopped)


def test_the_rank_that_is_furthest_behind_hangs():
    assert hanging_rank([sign(0), sign(1, step=4, age_s=650), sign(2)], 600).rank == 1


def test_of_ranks_in_one_step_the_one_that_waits_for_data_hangs():
    assert hanging_rank([sign(0, age_s=701), sign(1, "data", age_s=700), sign(2)], 600).rank == 1


def test_of_ranks_in_one_phase_the_one_that_was_silent_first_hangs():
    assert hanging_rank([sign(0), sign(1, age_s=701), sign(2)], 600).rank == 1


def test_of_all_ranks_the_one_whose_process_is_stopped_hangs():
    assert hanging_rank([sign(0, age_s=701), sign(1, stopped=True), sign(2)], 600).rank == 1
    assert "; its process is stopped" in sign(1, stopped=True).failure("head", ()).text


@pytest.mark.parametrize("phase", ["data", "step", "evaluating", "saving"])
def test_a_rank_may_hang_wherever_it_makes_progress(phase):
    assert hanging_rank([sign(0, phase)], 600).rank == 0


@pytest.mark.parametrize("phase", ["starting", "compiling"])
def test_who_compiles_or_starts_is_waited_for(phase):
    assert hanging_rank([sign(0), sign(1, phase, step=4, age_s=9999)], 600) is None


def test_while_one_rank_moves_the_others_wait_for_it():
    assert hanging_rank([sign(0, "evaluating", step=4, age_s=2), sign(1)], 600) is None


def test_who_is_done_is_not_counted():
    assert hanging_rank([sign(0, "done", step=4), sign(1)], 600).rank == 1
    assert hanging_rank([sign(0, "done")], 600) is None
    assert hanging_rank([], 600) is None


def test_the_failure_says_where_it_hangs():
    failure = sign(3, "data").failure("head", ("File a.py",), "worker_3.log")
    assert failure.describe().splitlines() == [
        "rank 3 on head failed first: hangs: phase 'data' of step 5, no sign of life for 700 s",
        "from its log, worker_3.log:",
        "  File a.py",
    ]


def test_the_stack_is_what_the_log_gains(tmp_path):
    log = tmp_path / "worker_0.log"
    log.write_text("before\n")

    def ask():
        with open(log, "a") as file:
            file.write("Current thread:\n  File a.py\n")

    assert stack_of(log, ask) == ("Current thread:", "  File a.py")


def test_a_process_that_does_not_answer_shows_no_stack(tmp_path, monkeypatch):
    monkeypatch.setattr("mindmodel.supervise.hang.DUMP_LIMIT_S", 0.2)
    assert stack_of(tmp_path / "none.log", lambda: None) == ()


WORKER = """
def the_place_where_it_hangs():
    forever()
beat("data", 2)
time.sleep(0.2)
if rank == 1:
    the_place_where_it_hangs()
beat("step", 2)
forever()
"""


def test_a_hanging_rank_is_shown_with_its_stack_and_all_end(job):
    node = job.start(WORKER, hang_limit_s=1, workers=3)
    code, _, err = node.end()
    assert code == 3 and node.pids() == []
    assert "rank 1 on " in err and "hangs: phase 'data' of step 2, no sign of life for 1 s" in err
    assert "in the_place_where_it_hangs" in err
    assert "the_place_where_it_hangs" in (node.logs / "worker_1.log").read_text()


def test_compiling_may_take_longer_than_the_limit(job):
    assert job("beat('compiling', 0); time.sleep(2.5)", hang_limit_s=1)[0] == 0
