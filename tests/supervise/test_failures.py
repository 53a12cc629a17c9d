"""The first failure, told from logs and exits."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest

from mindmodel.parallel.json_lines import MAX_LINE_BYTES, encode
from mindmodel.supervise.failures import (
    Failure,
    failure_from_json,
    failure_of,
    failure_to_json,
    first_failure,
    log_tail,
)
from mindmodel.supervise.processes import Exit

LATE = 2e9


@pytest.fixture
def log(tmp_path):
    """Function: a log with this content."""

    def write(text):
        path = tmp_path / "worker_1.log"
        path.write_text(text)
        return path

    return write


def mindspore(level, at_s, text):
    stamp = time.strftime("%Y-%m-%d-%H:%M:%S", time.localtime(at_s))
    return f"[{level}] DISTRIBUTED(13757,7feb2e1fd6c0,python):{stamp}.061.333 [mindspore/ccsrc/a.cc:5] Update] {text}\n"


def failure(**changes) -> Failure:
    plain = Failure(who="rank 1", host="h", text="ValueError: no", lost=False, bad_input=False, time_s=5.0)
    return dataclasses.replace(plain, **changes)


def test_the_earliest_error_comes_first():
    assert first_failure([failure(time_s=2.0), failure(time_s=1.0), None]).time_s == 1.0


def test_a_lost_connection_comes_after_all_others():
    assert first_failure([failure(lost=True, time_s=1.0), failure(time_s=9.0)]).time_s == 9.0
    assert first_failure([failure(lost=True, time_s=4.0), failure(lost=True, time_s=3.0)]).time_s == 3.0


def test_nothing_failed():
    assert first_failure([None, None]) is None


def test_what_a_rank_reports_is_its_error(log):
    path = log("step 1\n[rank 1 on head at 1000.500] ValueError: no\n    such thing\nTraceback\n")
    found = failure_of("rank 1", path, Exit(code=3, time_s=LATE))
    assert (found.who, found.text, found.time_s, found.lost) == ("rank 1", "ValueError: no\nsuch thing", 1000.5, False)
    assert "step 1" in found.lines and found.log == str(path)


def test_mindspores_error_counts_with_its_own_time(log):
    levels = {"careful": "WARNING", "Memory not enough": "ERROR", "then": "ERROR"}
    text = (mindspore(level, 999 + number, line) for number, (line, level) in enumerate(levels.items()))
    found = failure_of("rank 1", log("".join(text)), Exit(code=1, time_s=LATE))
    assert (found.text, found.time_s) == ("Memory not enough", 1000.061)


def test_the_cause_counts_rather_than_the_connection_that_it_broke(log):
    text = "[rank 1 on head at 1002.000] TrainingError: MindSpore failed: connection reset\n"
    found = failure_of("rank 1", log(mindspore("ERROR", 1000, "Memory not enough") + text), Exit(code=3, time_s=LATE))
    assert found.text == "Memory not enough" and not found.lost


@pytest.mark.parametrize(
    "text",
    [
        "The node: 1 is timed out. It may exit with exception, please check this node's log.",
        "There are 1 abnormal compute graph nodes.",
        "Connection reset by peer",
        "EI0002: the wait execution of the Notify register times out",
        "Failed to send message",
    ],
)
def test_lost_connections_are_known(log, text):
    assert failure_of("scheduler", log(mindspore("ERROR", 1000, text)), Exit(code=1, time_s=LATE)).lost


def test_pythons_own_last_line_is_the_error_of_a_rank_that_reported_none(log):
    text = "Traceback (most recent call last):\n  File \"a.py\"\nModuleNotFoundError: No module named 'x'\n"
    found = failure_of("rank 1", log(text), Exit(code=1, time_s=50.0))
    assert (found.text, found.time_s) == ("ModuleNotFoundError: No module named 'x'", 50.0)


@pytest.mark.parametrize(
    "code, text",
    [
        (-9, "killed by SIGKILL, which mindmodel did not send: most often it is the kernel, when memory runs out"),
        (-11, "killed by SIGSEGV"),
        (-63, "killed by signal 63"),
        (7, "ended with exit code 7 and without a message"),
        (None, "ended as soon as it was started"),
    ],
)
def test_a_rank_that_said_nothing_is_known_by_its_exit(log, code, text):
    found = failure_of("rank 1", log("step 1\n"), Exit(code=code, time_s=50.0))
    assert found.text.startswith(text) and found.time_s == 50.0 and not found.lost


def test_errors_before_a_kill_do_not_hide_it(log):
    found = failure_of("rank 1", log(mindspore("ERROR", 10, "harmless")), Exit(code=-9, time_s=50.0))
    assert found.text.startswith("killed by SIGKILL")


def test_a_rank_that_runs_has_failed_only_when_it_says_so(log):
    assert failure_of("rank 1", log(mindspore("ERROR", 10, "harmless")), None) is None
    assert failure_of("rank 1", log("[rank 1 on head at 10.0] ValueError: no\n"), None).time_s == 10.0


def test_a_process_that_ends_well_but_too_early_is_named_as_such(log):
    assert failure_of("scheduler", log("done"), Exit(code=0, time_s=50.0)).text == "ended while it was still needed"


def test_exit_code_2_is_bad_input(log):
    path = log("[rank 1 on head at 10.0] DataError: no\n")
    assert failure_of("rank 1", path, Exit(code=2, time_s=50.0)).bad_input
    assert not failure_of("rank 1", path, Exit(code=3, time_s=50.0)).bad_input


def test_a_missing_log_is_empty(tmp_path):
    assert failure_of("rank 1", tmp_path / "none", Exit(code=1, time_s=1.0)).lines == ()


def test_of_a_long_log_the_end_is_read(log):
    assert log_tail(log("x" * 5000 + "the end"), 10) == "xxxthe end"


def test_it_is_told_with_rank_host_error_lines_and_log():
    told = failure(lines=("a", "b"), log="runs/x/logs/worker_1.log").describe()
    assert told.splitlines() == [
        "rank 1 on h failed first: ValueError: no", "from its log, runs/x/logs/worker_1.log:", "  a", "  b"
    ]
    assert failure().describe() == "rank 1 on h failed first: ValueError: no"


def test_it_goes_over_the_wire():
    sent = failure(lines=("a", "b"), log="worker.log")
    assert failure_from_json(json.loads(json.dumps(failure_to_json(sent)))) == sent


def test_it_is_cut_to_what_a_message_may_hold():
    sent = failure_to_json(failure(text="\u4e2d" * 10**6, lines=("\u4e2d" * 10**4,) * 1000))
    assert len(encode({"failure": sent})) < MAX_LINE_BYTES
    assert failure_from_json(sent) is not None


@pytest.mark.parametrize(
    "change", [{"who": 1}, {"lost": "yes"}, {"time_s": None}, {"lines": "a"}, {"lines": [1]}, {"more": 1}]
)
def test_what_is_no_failure_is_not_taken(change):
    assert failure_from_json({**failure_to_json(failure()), **change}) is None
    assert failure_from_json([1]) is None


def test_control_characters_from_another_node_are_not_shown():
    sent = failure_to_json(failure(text="a\x1b[2Jb", lines=("\x07",)))
    assert "\x1b" not in failure_from_json(sent).text and failure_from_json(sent).lines == ("\ufffd",)
