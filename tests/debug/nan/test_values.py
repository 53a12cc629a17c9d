"""Results of a graph's nodes, and the numbers of a tensor."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from mindmodel.errors import GraphError

X = np.array([[1.0, 2.0], [3.0, -4.0]], np.float32)


@pytest.fixture(scope="module")
def graph(runtime, tmp_path_factory):
    """|x| w exp(|x| w), and w."""
    import mindspore as ms
    from mindspore import Parameter, Tensor, nn, ops

    from mindmodel.debug.graph.compile import export_graph

    class Net(nn.Cell):
        def __init__(self):
            super().__init__()
            self.weight = Parameter(Tensor(2.0, ms.float32), name="weight")

        def construct(self, x):
            y = ops.abs(x) * self.weight
            return y * ops.exp(y)

    net = Net()
    mindir, _ = export_graph(net, (Tensor(X),), runtime.cache, tmp_path_factory.mktemp("stages"))
    return mindir, {"weight": Tensor(3.0, ms.float32)}


@pytest.mark.parametrize("held_bytes", [1, 2**20])
def test_every_result_is_had_also_when_few_may_be_held_at_once(graph, runtime, held_bytes):
    from mindspore import Tensor

    from mindmodel.debug.nan.values import Values

    mindir, weights = graph
    values = Values(mindir, held_bytes)
    for _ in range(2):
        found = dict(
            (values.nodes.kind(node), array)
            for node, array in values.compute(values.tensors(), (Tensor(X),), weights, runtime.cache)
        )
    y = np.abs(X) * 3
    assert list(found) == ["Abs", "Mul", "Exp"]
    np.testing.assert_allclose(found["Exp"], np.exp(y), rtol=1e-3)
    np.testing.assert_allclose(found["Mul"], y * np.exp(y), rtol=1e-3)


def test_what_mindspore_cannot_compute_is_said_in_a_line(graph, runtime):
    from mindspore import Tensor

    from mindmodel.debug.nan.values import Values

    mindir, weights = graph
    values = Values(mindir)
    with pytest.raises(GraphError, match=r"^results of operators cannot be had: .*--debug shows all\.$"):
        list(values.compute(values.tensors(), (Tensor(X), Tensor(X)), weights, runtime.cache))


def test_numbers_of_a_tensor():
    from mindmodel.debug.nan.values import Range, range_of

    array = np.array([[3.0, np.nan], [-4.0, np.inf]], ml_dtypes.bfloat16)
    wanted = Range(type="bfloat16[2, 2]", low=-4.0, high=3.0, num_bad=2, first_bad=(0, 1), bad="nan", norm=5.0)
    assert range_of(array) == wanted
    assert range_of(np.array([2, 7], np.int32)) == Range(type="int32[2]", low=2.0, high=7.0, norm=53**0.5)
    nothing = range_of(np.full(3, np.inf, np.float32))
    assert (nothing.low, nothing.high, nothing.num_bad, nothing.bad) == (None, None, 3, "inf")
    assert range_of(np.float32([1e30, 1e30])).norm == pytest.approx(2**0.5 * 1e30)
