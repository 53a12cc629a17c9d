"""Numbers that go round among ranks; tests/msrun has several, here is one."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

import mindmodel
from mindmodel.parallel.environment import Place
from mindmodel.parallel.ranks import Ranks

OWN_RANK = re.compile(r"MS_NODE_ID|MS_ROLE|MS_WORKER_NUM|get_rank|get_group_size|RANK_ID|RANK_SIZE")
READERS = {"parallel/environment.py"}
SET_OR_OF_OTHERS = {"dryrun/child.py", "debug/graph/missing_on_ascend.py", "supervise/start.py"}


def test_a_process_alone_is_the_first_and_gathers_what_it_gives():
    alone = Ranks(Place())
    assert alone.is_first and alone.count == 1
    alone.meet()
    found = alone.gather(1.5, np.pi, float("inf"))
    assert found.shape == (1, 3) and found.dtype == np.float64
    np.testing.assert_array_equal(found, [[1.5, np.pi, float("inf")]])


def test_a_rank_that_is_not_the_first_writes_nothing():
    assert not Ranks(Place(rank=1, num_ranks=2)).is_first


def test_one_file_reads_this_processs_rank():
    package = Path(mindmodel.__file__).parent
    users = {str(path.relative_to(package)) for path in package.rglob("*.py") if OWN_RANK.search(path.read_text())}
    assert users - SET_OR_OF_OTHERS == READERS
