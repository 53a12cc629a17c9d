"""What MindSpore's profiler writes; that it is switched on and off is seen where the command runs."""

from __future__ import annotations

import pytest

from mindmodel.debug.profile.recording import read_steps
from mindmodel.errors import GraphError

TIMES = (
    "Default/net-Net/MatMul-op0;HostCpuOps;1500,0.0002,0 3500,0.0004,0 \n"
    "Default/Mul-op0;HostCpuOps;1800,0.0001,0 \n"
)
MEMORY = """\
Timestamp(ns),Total Allocated(Byte),Total Reserved(Byte),Total Active(Byte)
1400,512,1024,512
3400,768,1024,9
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "cpu_op_execute_timestamp_0.txt").write_text(TIMES)
    (tmp_path / "cpu_ms_memory_record_0.txt").write_text(MEMORY)
    return tmp_path


def test_kernels_are_sorted_into_the_steps_in_which_they_ran(folder):
    first, second = read_steps(folder, [(1000, 1100, 2000), (3000, 3100, 4000)])
    assert [(event.scope, event.begin_ns, event.end_ns) for event in first.events] == [
        ("Default/net-Net/MatMul-op0", 1500, 1700), ("Default/Mul-op0", 1800, 1900)
    ]
    assert [event.end_ns for event in second.events] == [3900]
    assert (first.memory, second.memory) == (((1400, 512),), ((3400, 768),))


def test_a_step_in_which_the_profiler_saw_nothing_is_refused(folder):
    with pytest.raises(GraphError, match="profiler saw no kernels. Another MindSpore than 2.9?"):
        read_steps(folder, [(1000, 1100, 2000), (5000, 5100, 6000)])
