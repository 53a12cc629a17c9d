"""What a user sees of a launched run."""

from __future__ import annotations

import io

import pytest

from mindmodel.supervise.hang import Sign
from mindmodel.supervise.screen import Screen
from mindmodel.terminal import Terminal


class Window(io.StringIO):
    """A terminal."""

    def isatty(self):
        return True


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "worker_0.log"
    path.write_text("")
    return path


def sign(rank, phase, step=0, age_s=0.0):
    return Sign(rank=rank, phase=phase, step=step, age_s=age_s)


def append(log, text):
    with open(log, "a") as file:
        file.write(text)


def test_lines_are_shown_once_and_when_they_are_whole(log):
    out = io.StringIO()
    screen = Screen(Terminal(out), log)
    append(log, "one\ntw")
    screen.update(())
    screen.update(())
    append(log, "o\n")
    screen.update(())
    assert out.getvalue() == "one\ntwo\n"


def test_a_last_line_without_end_is_shown_at_the_end(log):
    out = io.StringIO()
    screen = Screen(Terminal(out), log)
    append(log, "half")
    screen.finish()
    assert out.getvalue() == "half\n"


def test_errors_of_ranks_stacks_and_mindspores_lines_are_not_repeated(log):
    out = io.StringIO()
    append(log, "[rank 0 on h at 1.000] ValueError: no\n[ERROR] CORE(1,2,python):2026 x\n[1, 2]\n")
    append(log, 'Current thread 0x00007f6edde23b80 (most recent call first):\n  File "a.py", line 2 in f\n')
    Screen(Terminal(out), log).update(())
    assert out.getvalue() == "[1, 2]\n"


def test_on_a_terminal_progress_moves(log):
    out = Window()
    append(log, "10/900 loss 3.2\n20/900 loss 3.1\n")
    Screen(Terminal(out), log).update(())
    assert out.getvalue() == "10/900 loss 3.2\r\x1b[K20/900 loss 3.1"


def test_compiling_shows_a_moving_line(log):
    out = Window()
    Screen(Terminal(out), log).update([sign(0, "step", 1), sign(1, "compiling", age_s=75)])
    assert out.getvalue() == "| compiling: 1 of 2 ranks here, 1 min 15 s"


def test_a_node_without_rank_0_shows_where_its_ranks_are():
    out = io.StringIO()
    Screen(Terminal(out), None).update([sign(8, "step", 12), sign(9, "data", 13)])
    assert out.getvalue() == "ranks 8 to 9: step, step 12\n"


def test_a_log_that_is_not_there_yet_shows_nothing(tmp_path):
    out = io.StringIO()
    Screen(Terminal(out), tmp_path / "none.log").update(())
    assert out.getvalue() == ""
