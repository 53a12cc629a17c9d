"""What MindSpore would run on Ascend's chip and what on the host, from its own choice for a simulated device."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mindmodel.debug.graph.missing_on_ascend import TO_HOST, missing_on_ascend, numbers_on_host
from mindmodel.debug.graph.sources import Source
from mindmodel.errors import GraphError

EXPORT = '''
import sys
import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.graph.api import _cell_graph_executor as executor


class Net(nn.Cell):
    def construct(self, x):
        y = ops.cholesky(x)
        return ops.ormqr(x, x[0], x) + ops.exp(y) @ x


ms.set_device("CPU")
net, x = Net(), ms.Tensor(np.eye(8, dtype=np.float32))
key, _ = executor.compile(net, x, phase="export.mindir", do_convert=False)
open(sys.argv[1], "wb").write(executor._get_func_graph_proto(net, key, "mind_ir"))
'''


def test_only_what_was_tried_since_the_last_mark_counts():
    lines = ["noise", "tried operator 0", f"[INFO] {TO_HOST}, node:X", "more", "tried operator 1", "tried operator 2"]
    assert list(numbers_on_host("\n".join(lines))) == [1]
    assert list(numbers_on_host(f"{TO_HOST}\n{TO_HOST}\ntried operator 0\n{TO_HOST}")) == [0]


def test_operators_that_ascend_lacks_are_listed_whether_the_host_has_them_or_not(standin, tmp_path):
    (tmp_path / "net.py").write_text(EXPORT)
    subprocess.run([sys.executable, "net.py", "net.mindir"], cwd=tmp_path, check=True, capture_output=True)
    sources = {"Default/Cholesky-op0": Source(file="net.py", line=11)}
    found = {one.operator: one for one in missing_on_ascend(tmp_path / "net.mindir", sources)}
    assert set(found) == {"Cholesky", "Ormqr"}
    assert found["Cholesky"].reason.startswith("no kernel on Ascend: MindSpore runs it on the host's CPU")
    assert found["Ormqr"].reason == "no kernel on Ascend, nor on the host's CPU"
    assert found["Cholesky"].where == ("net.py:11",) and found["Cholesky"].types == "float32"


def test_a_graph_that_cannot_be_read_is_refused_with_what_the_process_said(standin, tmp_path):
    (tmp_path / "net.mindir").write_bytes(b"no graph")
    with pytest.raises(GraphError, match="could not be asked for the kernels of Ascend, code 1: .*DecodeError.*doctor"):
        missing_on_ascend(tmp_path / "net.mindir", {})
