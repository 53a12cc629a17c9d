"""Lines for people and for files."""

from __future__ import annotations

import io
import os
import re
import signal
import sys

import pytest

from command import ROOT, in_terminal
from mindmodel.terminal import Terminal, data_size, duration, ended_by_interrupt, printable, quantity


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def screen(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    return Screen()


@pytest.mark.parametrize(
    "seconds, words",
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (3600, "1 h 00 min"), (7800, "2 h 10 min")],
)
def test_durations_are_written_as_people_write_them(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    "number, text",
    [(0, "0 "), (999, "999 "), (999_600, "1 M"), (2358720, "2.36 M"), (8.03e9, "8.03 G"), (1e27, "1000 Y")],
)
def test_a_quantity_has_three_digits_and_a_prefix_for_its_unit(number, text):
    assert quantity(number) == text


@pytest.mark.parametrize(
    "num_bytes, text",
    [(5, "5 B"), (1536, "1.5 KiB"), (1023 * 2**20, "1023 MiB"), (2**30 - 1, "1 GiB"), (2**60, "1024 PiB")],
)
def test_bytes_are_counted_in_1024s(num_bytes, text):
    assert data_size(num_bytes) == text


def test_without_a_terminal_a_line_is_a_line():
    stream = io.StringIO()
    Terminal(stream).say("long " * 50)
    assert stream.getvalue() == "long " * 50 + "\n"


def test_without_a_terminal_a_status_is_repeated_now_and_then_and_at_the_end():
    stream = io.StringIO()
    terminal = Terminal(stream)
    for step in range(1, 6):
        terminal.progress(step, 5, "loss")
    assert stream.getvalue() == "1/5 loss\n5/5 loss\n"


def test_on_a_terminal_a_status_gives_way_to_the_next_line(screen):
    terminal = Terminal(screen)
    terminal.status("one")
    terminal.status("two")
    terminal.say("three")
    assert screen.getvalue() == "one\r\x1b[Ktwo\r\x1b[Kthree\n"


def test_on_a_terminal_a_status_is_cut_and_a_line_is_broken_between_words(screen):
    terminal = Terminal(screen)
    terminal.status("x" * 99)
    assert screen.getvalue() == "x" * 39
    terminal.say("  a " + "word " * 20 + "/a/path/" + "x" * 50 + "\n\nend")
    lines = screen.getvalue().split("\x1b[K")[1].split("\n")
    assert lines[0].startswith("  a word") and all(line.startswith("    ") for line in lines[1:4])
    assert [len(line) for line in lines if len(line) > 39] == [62]  # a path stays whole
    assert lines[-3:] == ["", "end", ""]


def test_the_bar_gives_way_on_a_narrow_terminal(screen, monkeypatch):
    terminal = Terminal(screen)
    terminal.progress(5, 10, "loss 1")
    assert screen.getvalue() == "[#########.........] 5/10 loss 1"
    monkeypatch.setenv("COLUMNS", "24")
    terminal.progress(6, 10, "loss 1")
    assert screen.getvalue().endswith("\r\x1b[K6/10 loss 1")


def test_text_that_would_change_the_terminal_is_replaced(screen):
    assert printable("a\tb\nc\x1b[2J\x07é") == "a\tb\nc\ufffd[2J\ufffdé"
    Terminal(screen).say("\x1b[31mred")
    assert screen.getvalue() == "\ufffd[31mred\n"


def test_when_the_reader_goes_away_the_work_goes_on():
    ours, its = os.pipe()
    with open(its, "w") as stream:
        terminal = Terminal(stream)
        os.close(ours)
        terminal.say("nobody hears this")
        terminal.say("nor this")
        terminal.status("nor this")


def test_without_a_terminal_long_work_is_announced():
    stream = io.StringIO()
    with Terminal(stream).working("compiling"):
        pass
    assert stream.getvalue() == "compiling ...\n"


WORK = """
import time
from mindmodel.terminal import Terminal
with Terminal().working("compiling"):
    time.sleep(1)
"""


def test_on_a_terminal_long_work_shows_the_seconds_so_far():
    code, output = in_terminal([sys.executable, "-c", WORK], 80, cwd=ROOT)
    shown = output.split("\r\x1b[K")
    assert code == 0 and len({line for line in shown if re.fullmatch(r"[|/\\-] compiling  \d s", line)}) >= 3
    assert re.fullmatch(r"compiling: [12] s\r\n", shown[-1])


def test_an_interrupt_ends_the_process_at_once_while_mindspore_is_imported():
    before = signal.getsignal(signal.SIGINT)
    stream = io.StringIO()
    with Terminal(stream).loading():
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == before
    assert stream.getvalue() == "loading MindSpore ...\n"


def test_an_interrupt_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ended_by_interrupt():
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
