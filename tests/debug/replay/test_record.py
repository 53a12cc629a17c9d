"""What a run has written down of its steps, beside the same steps made again."""

from __future__ import annotations

import json
import math

import numpy as np

from mindmodel.debug.replay.record import Numbers, recorded


def test_rows_that_hold_a_training_step_are_taken():
    rows = [{"from_step": 0, "changes": []}, {"step": 4, "loss": 2.5, "grad_norm": 0.5}, {"step": 4, "eval_loss": 3.0}]
    assert recorded(rows) == {4: Numbers(loss=2.5, grad_norm=0.5)}


def test_a_float32_comes_back_from_the_file_with_every_bit():
    loss = float(np.nextafter(np.float32(2.5), np.float32(3)))
    (was,) = recorded([json.loads(json.dumps({"step": 1, "loss": loss, "grad_norm": 1.0}))]).values()
    assert list(Numbers.of(loss, 1.0).unlike(was)) == []
    assert list(Numbers.of(2.5, 1.0).unlike(was)) == ["loss was 2.50000024 (9.5e-08 of it)"]


def test_numbers_that_are_not_finite_are_alike():
    was = Numbers(loss=None, grad_norm=None)
    assert list(Numbers.of(math.nan, math.inf).unlike(was)) == []
    assert list(Numbers.of(1.0, math.nan).unlike(was)) == ["loss was not finite"]
    assert str(Numbers.of(math.nan, 0.1)) == "loss not finite, gradient norm 0.1"
    assert list(Numbers.of(math.nan, 1.0).unlike(Numbers.of(2.0, 0.0))) == ["loss was 2", "gradient norm was 0"]
