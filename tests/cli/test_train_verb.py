"""What MindSpore says in pages becomes a line."""

from __future__ import annotations

import pytest

from mindmodel.cli.train import _failures_in_a_line
from mindmodel.errors import TrainingError


@pytest.mark.parametrize(
    "error, line",
    [
        (RuntimeError("\nMalloc for kernel output failed.\n\n---\n- C++ Call"), "Malloc for kernel output failed."),
        (MemoryError(), "MemoryError."),
    ],
)
def test_a_failure_of_the_framework_is_one_line_and_the_way_to_all_of_it(error, line):
    message = f"MindSpore failed: {line} The same command with --debug shows all."
    with pytest.raises(TrainingError, match=message) as told:
        with _failures_in_a_line():
            raise error
    assert told.value.__cause__ is error and "\n" not in str(told.value)


def test_other_errors_pass():
    with pytest.raises(TrainingError, match="^not finite$"), _failures_in_a_line():
        raise TrainingError("not finite")
