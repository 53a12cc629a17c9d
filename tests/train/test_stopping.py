"""Reasons to leave the loop: signals, the clock, a step."""

from __future__ import annotations

import os
import signal

import pytest

from mindmodel.recipe.schema import TrainSection
from mindmodel.train.stopping import SIGNALS, Stopper


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
    assert begun.reason(1) is None and begun.signal is None


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted(number, begun):
    os.kill(os.getpid(), number)
    assert begun.reason(1) == f"{number.name} received"
    assert begun.signal == number.name


def test_the_second_signal_of_a_kind_interrupts_and_one_of_another_does_not(begun):
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert begun.reason(1) == "SIGUSR1 received"
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
            assert stopper.reason(1) is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_step_to_stop_at():
    stopper = Stopper(section(stop_at=4))
    assert stopper.reason(3) is None and stopper.reason(5) is None
    assert stopper.reason(4) == "train.stop_at=4 reached"


def test_a_time_limit():
    assert Stopper(section(max_hours=1.0)).reason(1) is None
    assert Stopper(section(max_hours=1e-12)).reason(1) == "train.max_hours reached"
