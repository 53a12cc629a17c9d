"""Reasons to leave the loop: signals, the clock, a step."""

from __future__ import annotations

import os
import signal

import pytest

from mindmodel.recipe.schema import TrainSection
from mindmodel.train.stopping import GO_ON, SIGNALS, STEP_REACHED, TIME_IS_UP, Stopper, agreed, reason


def section(**keys) -> TrainSection:
    return TrainSection(steps=9, tokens_per_step=1, **keys)


@pytest.fixture(autouse=True)
def hang_up_is_not_ignored():
    """As it is under nohup, for example."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def begun():
    with Stopper(section()) as stopper:
        stopper.begin()
        yield stopper


def test_without_a_reason_the_loop_goes_on(begun):
    assert begun.code(1) == GO_ON


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted(number, begun):
    os.kill(os.getpid(), number)
    assert begun.code(1) == number
    assert reason(begun.code(1), 1) == f"{number.name} received"


def test_the_second_signal_of_a_kind_interrupts_and_one_of_another_does_not(begun):
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert begun.code(1) == signal.SIGUSR1
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)


def test_before_the_first_step_a_signal_has_the_effect_that_the_system_gives_it():
    with Stopper(section()):
        assert all(signal.getsignal(number) == signal.SIG_DFL for number in SIGNALS)


def test_the_handlers_that_stood_before_come_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with Stopper(section()) as stopper:
        stopper.begin()
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stopper(section()) as stopper:
            stopper.begin()
            os.kill(os.getpid(), signal.SIGHUP)
            assert stopper.code(1) == GO_ON
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_step_to_stop_at():
    stopper = Stopper(section(stop_at=4))
    assert stopper.code(3) == stopper.code(5) == GO_ON
    assert stopper.code(4) == STEP_REACHED
    assert reason(STEP_REACHED, 4) == "train.stop_at=4 reached"


def test_a_time_limit():
    assert Stopper(section(max_hours=1.0)).code(1) == GO_ON
    assert Stopper(section(max_hours=1e-12)).code(1) == TIME_IS_UP
    assert reason(TIME_IS_UP, 1) == "train.max_hours reached"


@pytest.mark.parametrize(
    "codes, counts",
    [
        ([GO_ON, GO_ON], GO_ON),
        ([GO_ON, TIME_IS_UP], TIME_IS_UP),
        ([STEP_REACHED, TIME_IS_UP], TIME_IS_UP),
        ([TIME_IS_UP, GO_ON, int(signal.SIGTERM)], signal.SIGTERM),
    ],
)
def test_all_ranks_stop_when_one_does_and_a_signal_counts_most(codes, counts):
    assert agreed(codes) == counts
