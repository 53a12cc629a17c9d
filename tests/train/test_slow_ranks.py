"""Which rank is named as slow, from what every rank did alone."""

from __future__ import annotations

import numpy as np
import pytest

from mindmodel.train.slow_ranks import slow

HOSTS = ["a", "a", "b", "b"]


def rows(flops, reading_s):
    return np.array([flops, reading_s], dtype=float).T


def test_ranks_that_are_alike_are_not_named_and_nobody_is_asked_for_hosts():
    assert slow(rows([1e12, 1.1e12, 0.9e12, 1e12], [1e-3, 1e-3, 2e-3, 1e-3]), lambda: pytest.fail("asked")) == []


def test_a_rank_that_computes_slowly_is_named_with_its_host_and_how_slow():
    found = slow(rows([1e12, 1e12, 4e11, 1e12], [0.0] * 4), lambda: HOSTS)
    assert found == ["rank 2 on b is slow: its matmul takes 2.5 times the median's"]


def test_a_rank_that_reads_slowly_is_named():
    found = slow(rows([1e12] * 4, [0.05, 0.4, 0.05, 0.05]), lambda: HOSTS)
    assert found == ["rank 1 on a is slow: reading a batch takes 0.40 s, the median's 0.05 s"]


def test_one_rank_can_be_slow_in_both():
    (line,) = slow(rows([1e12, 1e12, 1e12, 1e11], [0.01, 0.01, 0.01, 0.9]), lambda: HOSTS)
    assert line.startswith("rank 3 on b is slow: its matmul takes 10.0 times the median's and reading a batch takes")
