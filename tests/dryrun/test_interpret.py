"""Small graphs, made by hand, of one rank and of several."""

from __future__ import annotations

import dataclasses
from typing import Any, Optional

import ml_dtypes
import numpy as np
import pytest

from mindmodel.dryrun.collectives import CollectiveCall
from mindmodel.dryrun.graph import (
    MONAD,
    Function,
    Graph,
    Input,
    Node,
    Parameter,
    Primitive,
    TensorType,
    ValueType,
)
from mindmodel.dryrun.interpret import Interpreter
from mindmodel.errors import LayoutError


def tensor(*shape: int, dtype: Any = np.float32) -> TensorType:
    return TensorType(dtype=np.dtype(dtype), shape=shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """A node with its primitive; without one it calls `target`."""

    node: Node
    primitive: Optional[Primitive]


def step(output: str, name: str, *inputs: str, type: ValueType = tensor(2), **attributes: Any) -> Made:
    """A node that executes a primitive."""
    scope, target = f"Default/{name}-op0", f"{name}:{output}"
    node = Node(name=output, scope=scope, target=target, inputs=inputs, output=output, type=type)
    return Made(node=node, primitive=Primitive(name=name, attributes=attributes))


def call(output: str, target: str, *inputs: str) -> Made:
    """A node that calls a function or a closure."""
    node = Node(name=output, scope="", target=target, inputs=inputs, output=output, type=None)
    return Made(node=node, primitive=None)


def function(name: str, inputs: tuple[str, ...], steps: list[Made], *outputs: str) -> Function:
    return Function(
        name=name,
        inputs=tuple(Input(name=key, key=key, type=tensor(2) if name == "main" else None) for key in inputs),
        nodes=tuple(made.node for made in steps),
        outputs=outputs,
    )


def graph(
    steps: list[Made],
    *outputs: str,
    inputs: tuple[str, ...] = ("x",),
    parameters: Optional[dict[str, TensorType]] = None,
    constants: Optional[dict[str, Any]] = None,
    functions: tuple[tuple[Function, list[Made]], ...] = (),
) -> Graph:
    main = function("main", inputs, steps, *outputs)
    every_step = [*steps, *(made for _, inner in functions for made in inner)]
    return Graph(
        main=main,
        parameters=tuple(Parameter(name=key, key=key, type=declared) for key, declared in (parameters or {}).items()),
        functions={"main": main, **{inner.name: inner for inner, _ in functions}},
        primitives={made.node.target: made.primitive for made in every_step if made.primitive},
        constants={"u": MONAD, **(constants or {})},
    )


X = np.array([1.0, 2.0], np.float32)


def run_alone(one: Graph, *inputs: Any, **options: Any) -> Any:
    return Interpreter([one], [{}], **options).run([inputs])[0]


def test_a_graph_is_executed_node_by_node():
    squared = graph([step("y", "Add", "x", "x"), step("z", "Square", "y")], "z")
    np.testing.assert_array_equal(run_alone(squared, X), [4.0, 16.0])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_every_float_takes_the_dtype_of_the_execution(dtype):
    third = np.array([1 / 3, 1 / 3], ml_dtypes.bfloat16)
    steps = [step("y", "Mul", "x", "third", type=tensor(2, dtype=ml_dtypes.bfloat16))]
    product = graph(steps, "y", constants={"third": third})
    result = run_alone(product, X, dtype=dtype)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, X.astype(dtype) * third.astype(dtype))


def test_integers_keep_their_dtype():
    count = np.array([3, 4], np.int32)
    doubled = graph([step("y", "Add", "n", "n", type=tensor(2, dtype=np.int32))], "y", constants={"n": count})
    result = run_alone(doubled, X)
    assert (result.dtype, result.tolist()) == (np.int32, [6, 8])


def test_parameters_are_updated_in_place_and_can_be_read_by_name():
    steps = [
        step("old", "Load", "w", "u"),
        step("new", "AssignAdd", "w", "x", "u"),
        step("result", "MakeTuple", "old", "new", type=(tensor(2), tensor(2))),
    ]
    given = {"w": np.array([10.0, 20.0], np.float32), "of another stage": X}
    interpreter = Interpreter([graph(steps, "result", parameters={"w": tensor(2)})], [given])
    ((old, new),) = interpreter.run([(X,)])
    assert (old.tolist(), new.tolist()) == ([10.0, 20.0], [11.0, 22.0])
    interpreter.run([(X,)])
    assert interpreter.parameters[0]["w"].tolist() == [12.0, 24.0]
    assert new.tolist() == [11.0, 22.0]
    assert given["w"].tolist() == [10.0, 20.0]


def test_monads_are_no_operands():
    ordered = graph([step("state", "UpdateState", "u", "x", type=None), step("y", "Square", "x", "state")], "y")
    assert run_alone(ordered, X).tolist() == [1.0, 4.0]


def test_functions_and_closures_are_called():
    """Forward returns a closure that holds what backward needs, as in a graph that is inlined late."""
    backward_steps = [step("product", "Mul", "saved", "grad")]
    backward = function("backward", ("saved", "grad"), backward_steps, "product")
    forward_steps = [
        step("square", "Square", "a"),
        step("closure", "Partial", "backward", "a", type=None),
    ]
    forward = function("forward", ("a",), forward_steps, "square", "closure")
    steps = [
        call("both", "forward", "x"),
        step("later", "TupleGetItem", "both", "one", type=None),
        call("result", "later", "x"),
    ]
    inner = ((forward, forward_steps), (backward, backward_steps))
    whole = graph(steps, "result", constants={"one": 1}, functions=inner)
    assert run_alone(whole, X).tolist() == [1.0, 4.0]


@pytest.mark.parametrize("condition, wanted", [(True, [2.0, 4.0]), (False, [1.0, 4.0])])
def test_a_switch_chooses_the_function_that_is_called(condition, wanted):
    steps_of = {"double": [step("doubled", "Add", "a", "a")], "square": [step("squared", "Square", "b")]}
    double = function("double", ("a",), steps_of["double"], "doubled")
    square = function("square", ("b",), steps_of["square"], "squared")
    steps = [step("chosen", "Switch", "condition", "double", "square", type=None), call("result", "chosen", "x")]
    inner = ((double, steps_of["double"]), (square, steps_of["square"]))
    whole = graph(steps, "result", constants={"condition": np.array(condition)}, functions=inner)
    assert run_alone(whole, X).tolist() == wanted


def test_a_primitive_without_kernel_is_named_with_its_node_and_scope():
    with pytest.raises(LayoutError, match="rank 0, Fft y in Default/Fft-op0: Fft has no kernel"):
        run_alone(graph([step("y", "Fft", "x")], "y"), X)


@pytest.mark.parametrize(
    "declared, message",
    [
        (tensor(3), r"gives float64\[2\] from \(float64\[2\], float64\[2\]\), and the graph declares float64\[3\]"),
        (tensor(2, dtype=np.int32), r"gives float64\[2\] .* declares int32\[2\], floats being float64"),
        ((tensor(2), tensor(2)), r"gives float64\[2\] .* declares \(float64\[2\], float64\[2\]\)"),
    ],
)
def test_a_result_of_another_shape_or_dtype_than_declared_is_refused(declared, message):
    with pytest.raises(LayoutError, match=f"rank 0, Add y in Default/Add-op0: {message}"):
        run_alone(graph([step("y", "Add", "x", "x", type=declared)], "y"), X)


def test_an_operator_that_fails_is_named_with_what_it_was_given():
    failing = graph([step("y", "Reshape", "x", "shape")], "y", constants={"shape": (3,)})
    message = r"rank 0, Reshape y .* cannot be computed from \(float64\[2\], \(3\)\): .*size 2"
    with pytest.raises(LayoutError, match=message):
        run_alone(failing, X)


def test_inputs_that_do_not_fit_are_refused():
    one = graph([step("y", "Square", "x")], "y")
    with pytest.raises(LayoutError, match="rank 0: 2 inputs are given, and the graph has 1"):
        run_alone(one, X, X)
    with pytest.raises(LayoutError, match=r"rank 0: input 'x' is float32\[3\], and the graph declares float32\[2\]"):
        run_alone(one, np.zeros(3, np.float32))


def test_parameters_that_do_not_fit_are_refused():
    one = graph([step("y", "Square", "x")], "y", parameters={"w": tensor(2)})
    with pytest.raises(LayoutError, match="rank 0: parameter 'w' is missing"):
        Interpreter([one], [{}])
    with pytest.raises(LayoutError, match=r"rank 0: parameter 'w' is int64\[2\], and the graph declares float32\[2\]"):
        Interpreter([one], [{"w": np.array([1, 2])}])


def reduced(*, node: str = "sum", ranks: tuple[int, ...] = (0, 1), dtype: Any = np.float32, **changed: Any) -> Made:
    attributes = {"group": "2-123", "group_rank_ids": ranks, "op": "sum", **changed}
    return step(node, "AllReduce", "x", type=tensor(2, dtype=dtype), **attributes)


def run_together(*graphs: Graph) -> list[Any]:
    return Interpreter(graphs, [{}] * len(graphs)).run([(X * 10**rank,) for rank in range(len(graphs))])


def test_two_ranks_meet_at_a_collective():
    one = graph([reduced(), step("y", "Square", "sum")], "y")
    first, second = run_together(one, one)
    assert first.tolist() == second.tolist() == [121.0, 484.0]


def test_a_rank_outside_a_group_goes_on_alone():
    pair, alone = graph([reduced(ranks=(2, 0))], "sum"), graph([step("y", "Square", "x")], "y")
    results = run_together(pair, alone, pair)
    assert [result.tolist() for result in results] == [[101.0, 202.0], [100.0, 400.0], [101.0, 202.0]]


def test_the_log_says_who_sent_what_in_the_dtype_of_the_wire():
    one = graph([reduced(dtype=ml_dtypes.bfloat16)], "sum")
    interpreter = Interpreter([one, one], [{}, {}])
    interpreter.run([(X,), (X,)])
    first = CollectiveCall(
        kind="AllReduce",
        rank=0,
        group=(0, 1),
        shape=(2,),
        dtype="bfloat16",
        num_bytes=4,
        node="sum",
        scope="Default/AllReduce-op0",
    )
    assert interpreter.log == [first, dataclasses.replace(first, rank=1)]


def test_a_gather_is_logged_with_what_each_rank_gave():
    gathered = step("all", "AllGather", "x", type=tensor(4), group="hccl_world_group")
    interpreter = Interpreter([graph([gathered], "all")] * 2, [{}, {}])
    assert [result.tolist() for result in interpreter.run([(X,), (X + 2,)])] == [[1.0, 2.0, 3.0, 4.0]] * 2
    assert [(entry.kind, entry.shape, entry.num_bytes) for entry in interpreter.log] == [("AllGather", (2,), 8)] * 2


def test_a_broadcast_of_two_tensors_is_logged_as_two():
    steps = [
        step("pair", "MakeTuple", "x", "x", type=(tensor(2), tensor(2))),
        step("got", "Broadcast", "pair", type=(tensor(2), tensor(2)), group="hccl_world_group", root_rank=1),
    ]
    interpreter = Interpreter([graph(steps, "got")] * 2, [{}, {}])
    results = interpreter.run([(X,), (X + 2,)])
    assert [part.tolist() for result in results for part in result] == [[3.0, 4.0]] * 4
    assert [(entry.rank, entry.num_bytes) for entry in interpreter.log] == [(0, 8), (0, 8), (1, 8), (1, 8)]


@pytest.mark.parametrize(
    "other",
    [{"group": "another"}, {"op": "max"}, {"dtype": ml_dtypes.bfloat16}],
    ids=["group", "operation", "dtype on the wire"],
)
def test_ranks_at_different_collectives_are_a_deadlock(other):
    graphs = [graph([reduced()], "sum"), graph([reduced(node="other", **other)], "other")]
    with pytest.raises(LayoutError, match="The ranks wait for each other") as caught:
        run_together(*graphs)
    message = str(caught.value)
    assert "rank 0, AllReduce sum in Default/AllReduce-op0 in group 2-123 of ranks (0, 1)" in message
    assert "rank 1, AllReduce other in Default/AllReduce-op0 in group" in message
    assert message.endswith("Compile every rank anew, each in a process of its own.")


def test_collectives_in_another_order_are_a_deadlock():
    steps = [reduced(node="a", group="a"), reduced(node="b", group="b")]
    with pytest.raises(LayoutError, match="rank 0, AllReduce a .*\n.*rank 1, AllReduce b "):
        run_together(graph(steps, "a", "b"), graph(steps[::-1], "a", "b"))


def test_a_rank_that_has_finished_is_named_in_a_deadlock():
    with pytest.raises(LayoutError, match="rank 0, AllReduce sum .*\n  rank 1 has finished"):
        run_together(graph([reduced()], "sum"), graph([step("y", "Square", "x")], "y"))


def test_a_collective_that_fails_names_the_node():
    with pytest.raises(LayoutError, match="rank 0, AllReduce sum .*: cannot be executed: .*is not one of 2 ranks"):
        run_together(*[graph([reduced(ranks=(0, 2))], "sum")] * 2)


def sent(node: str, operand: str, to: int, tag: int) -> Made:
    return step(node, "Send", operand, dst_global_rank=to, sr_tag=tag)


def received(node: str, after: str, source: int, tag: int, type: ValueType = tensor(2)) -> Made:
    return step(node, "Receive", after, type=type, src_global_rank=source, sr_tag=tag)


def test_stages_of_a_pipeline_send_forward_and_back_in_order():
    """Two micro-batches go to the second stage, which sends a gradient back for each."""
    first = [sent("s0", "x", 1, 0), step("twice", "Add", "x", "x"), sent("s1", "twice", 1, 1)]
    first += [received("g0", "s1", 1, 0), received("g1", "g0", 1, 1), step("y", "Add", "g0", "g1")]
    second = [received("a0", "x", 0, 0), step("b0", "Square", "a0"), sent("t0", "b0", 0, 0)]
    second += [received("a1", "t0", 0, 1), step("b1", "Square", "a1"), sent("t1", "b1", 0, 1)]
    interpreter = Interpreter([graph(first, "y"), graph(second, "t1")], [{}, {}])
    assert interpreter.run([(X,), (X,)])[0].tolist() == [5.0, 20.0]
    routes = [(entry.kind, entry.rank, entry.group) for entry in interpreter.log]
    for kind, rank in (("Send", 0), ("Receive", 1)):
        assert routes.count((kind, rank, (0, 1))) == routes.count((kind, 1 - rank, (1, 0))) == 2
    assert {entry.num_bytes for entry in interpreter.log} == {8}


@pytest.mark.parametrize(
    "tag, declared, message",
    [
        (7, tensor(2), r"wants tag 7, float32\[2\]; rank 0, Send s .* sends tag 0, float32\[2\]"),
        (0, tensor(2, dtype=ml_dtypes.bfloat16), r"wants tag 0, bfloat16\[2\]; .* sends tag 0, float32\[2\]"),
    ],
)
def test_a_message_that_is_not_the_one_expected_is_refused(tag, declared, message):
    receiver = graph([received("r", "x", 0, tag, declared)], "r")
    with pytest.raises(LayoutError, match=f"rank 1, Receive r .*: cannot be executed: .*{message}"):
        run_together(graph([sent("s", "x", 1, 0)], "s"), receiver)


def test_a_message_that_never_comes_is_a_deadlock():
    with pytest.raises(LayoutError, match="rank 1, Receive r in Default/Receive-op0 from rank 0 with tag 3"):
        run_together(graph([step("y", "Square", "x")], "y"), graph([received("r", "x", 0, 3)], "r"))


def test_a_message_that_nobody_receives_is_refused():
    with pytest.raises(LayoutError, match="rank 0, Send s .*: no rank receives what it sends"):
        run_together(graph([sent("s", "x", 1, 0)], "s"), graph([step("y", "Square", "x")], "y"))
