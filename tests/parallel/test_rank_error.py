"""What a rank says when it fails."""

from __future__ import annotations

import time

import pytest

from mindmodel.errors import DataError
from mindmodel.parallel.rank_error import report_error, reported_errors


@pytest.fixture
def rank_3(monkeypatch, tmp_path):
    values = {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": "3", "MS_WORKER_NUM": "4", "MINDMODEL_HEARTBEATS": str(tmp_path)}
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_an_error_of_one_process_is_its_class_and_message(capsys, monkeypatch):
    monkeypatch.delenv("MINDMODEL_HEARTBEATS", raising=False)
    report_error(DataError("data/x: is empty."))
    assert capsys.readouterr().err == "DataError: data/x: is empty.\n"


def test_a_rank_says_who_where_and_when(capsys, rank_3):
    report_error(DataError("data/x: is empty.\nUse another.\n  or two"))
    shown = capsys.readouterr().err
    assert shown.startswith("[rank 3 on ")
    (error,) = reported_errors(f"before\n{shown}after\n")
    assert (error.who, error.text) == ("rank 3", "DataError: data/x: is empty.\nUse another.\n  or two")
    assert abs(error.time_s - time.time()) < 5 and error.host


def test_the_scheduler_says_so(capsys, rank_3, monkeypatch):
    monkeypatch.setenv("MS_ROLE", "MS_SCHED")
    report_error(ValueError("no"))
    (error,) = reported_errors(capsys.readouterr().err)
    assert (error.who, error.text) == ("scheduler", "ValueError: no")


def test_other_lines_are_no_errors():
    assert list(reported_errors("[rank 3] ValueError: no\n[rank x on h at 1.0] y\nValueError: no\n")) == []
