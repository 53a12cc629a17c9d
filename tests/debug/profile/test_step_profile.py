"""Where the time of a step goes: kernels that were timed, put into Cells and phases by the graph that ran."""

from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser

import pytest

from mindmodel.debug.profile.chrome_trace import chrome_trace
from mindmodel.debug.profile.kernel_graph import KernelGraph
from mindmodel.debug.profile.page import page_of
from mindmodel.debug.profile.places import placed_kernels
from mindmodel.debug.profile.step_profile import profile_of
from timed_step import BYTES, FIXED, KERNELS, MATMULS, NET, PROFILE, RECORDING, kernel, step


@pytest.fixture(scope="module")
def recording():
    return RECORDING


@pytest.fixture(scope="module")
def profile():
    return PROFILE


@pytest.fixture(scope="module")
def placed(recording):
    return placed_kernels(recording)


def phases_of(placed):
    return {one.kernel.key: one.phase for one in placed.values()}


def test_phases_follow_the_data(placed):
    found = phases_of(placed)
    assert [key for key, phase in found.items() if phase == "forward"] == ["x", "h0", "h1"]
    assert [key for key, phase in found.items() if phase == "loss"] == ["dh"]
    assert [key for key, phase in found.items() if phase == "backward"] == ["w1", "d1", "m1", "w0", "d0"]
    assert [key for key, phase in found.items() if phase == "optimizer"] == ["n", "s", "a1", "a0"]


def test_a_name_that_all_layers_share_is_not_believed(placed):
    places = {one.kernel.key: one.place for one in placed.values()}
    assert places["h0"] == "layers.0.mlp.down" and places["h1"] == "layers.1.mlp.down"
    assert places["d1"] == "layers.1.mlp.down" and places["d0"] == "layers.0.mlp.down"  # by the weight that is read
    assert places["w1"] == "layers.1.mlp.down" and places["w0"] == "layers.0.mlp.down"  # by the weight that is updated
    assert places["m1"] == "layers.1"  # by what it reads
    assert places["dh"] == "loss" and places["x"] == "embedding" and places["n"] == "optimizer"


def test_a_cast_is_no_place_of_its_own_and_hides_no_weight():
    cast = f"{NET}/embedding-Embedding/Cast"
    kernels = [
        *KERNELS[:3],
        kernel("c", f"{cast}-op0", ("%para3_layers.1.mlp.down.weight",)),
        KERNELS[3],
        kernel("d1", MATMULS[1], ("dh", "c")),
        kernel("c0", f"{cast}-op1", ("d1",)),
        kernel("w0", MATMULS[2], ("c0", "x")),
        kernel("cw", f"{cast}-op2", ("w0",)),
        kernel("sum", "Default/Add-op0", ("cw", "cw")),
        kernel("a0", KERNELS[-1].scope, ("%para2_layers.0.mlp.down.weight", "sum"), shape=(1,)),
    ]
    graph = KernelGraph(kernels={one.key: one for one in kernels}, bundles={}, output="a0")
    timed = dataclasses.replace(RECORDING, graph=graph, steps=(step(0, kernels=kernels),))
    places = {one.kernel.key: one.place for one in placed_kernels(timed).values()}
    assert places["c"] == places["d1"] == places["c0"] == "layers.1.mlp.down"
    assert places["w0"] == places["cw"] == places["sum"] == "layers.0.mlp.down"


def test_the_phases_add_up_to_the_step(profile):
    assert sum(profile.phases.values()) == pytest.approx(profile.step_s)
    assert profile.step_s == pytest.approx((0.041 + 0.067) / 2)
    assert profile.phases["data"] == pytest.approx(0.001)
    assert profile.phases["forward"] == pytest.approx(3 * 0.003)
    assert profile.phases["not in kernels"] == pytest.approx(13 * 0.001 + 0.001)


def test_parts_and_operators_hold_the_time_of_all_kernels(profile):
    in_kernels = sum(profile.phases[phase] for phase in ("forward", "loss", "backward", "optimizer"))
    assert sum(sum(phases.values()) for phases in profile.parts.values()) == pytest.approx(in_kernels)
    assert sum(seconds for _, seconds in profile.operators.values()) == pytest.approx(in_kernels)
    assert list(profile.parts) == ["embedding", "layers.0", "layers.1", "loss", "optimizer"]
    assert profile.operators["MatMul"] == (6, pytest.approx(6 * 0.003))
    assert profile.num_fused == 1 and profile.num_kernels == len(KERNELS)


def test_layers_are_one_row_with_the_rate_of_their_products(profile):
    (forward,) = [row for row in profile.products if row.phase == "forward"]
    assert (forward.place, forward.count, forward.shapes) == ("layers.*.mlp.down", 2, "[64, 64] x [64, 64]")
    assert forward.flop == 2 * 2 * 64**3 and forward.flop_s == pytest.approx(forward.flop / 0.006)
    assert next(row for row in profile.rows if row.operator == "fused Sub").where == "loss.py:7"


def test_the_overhead_is_that_of_the_median(profile):
    assert profile.plain_s == 0.05 and profile.overhead == pytest.approx(0.054 / 0.05 - 1)


def test_the_peak_is_what_the_pool_recorded_and_every_tensor_of_it_is_named(profile):
    memory = profile.memory
    assert memory.peak_bytes == FIXED + 4 * BYTES and memory.fixed_bytes == FIXED and memory.unexplained_bytes == 0
    assert memory.peak_kernel == "MatMul of layers.1.mlp.down, backward" and memory.peak_index == 5
    assert sum(row.num_bytes for row in memory.held) == 4 * BYTES
    held = {(row.operator, row.place, row.last_read) for row in memory.held}
    assert ("Gather", "embedding", "MatMul, backward") in held
    assert memory.by_phase["forward"] == FIXED + 2 * BYTES and len(memory.curve) == len(KERNELS)


def test_bytes_that_no_tensor_explains_are_told(recording):
    more = [(when, size + (5000 if number == 5 else 0)) for number, (when, size) in enumerate(step(0).memory)]
    changed = dataclasses.replace(recording, steps=(dataclasses.replace(step(0), memory=tuple(more)),))
    found = profile_of(changed, recipe="demo", kernels="", threads=2)
    assert found.memory.unexplained_bytes == 5000


def test_the_trace_is_one_that_viewers_read(recording):
    trace = json.loads(json.dumps(chrome_trace(recording, "demo")))
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(spans) == 2 * (len(KERNELS) + 2)
    assert min(event["ts"] for event in spans) == 0 and all(event["dur"] > 0 for event in spans)
    product = next(event for event in spans if event["name"] == "MatMul layers.0.mlp.down")
    assert product["cat"] == "forward" and product["args"]["flop"] == 2 * 64**3
    assert product["args"]["reads"] == ["float32[64, 64]", "float32[64, 64]"]
    assert {event["ph"] for event in trace["traceEvents"]} == {"M", "X", "C"}


class Balanced(HTMLParser):
    """Fails at a tag that is closed and was not the last to be opened."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attributes):
        assert tag != "script" and not {"src", "href"} & {name for name, _ in attributes}
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_shows_all_tables(profile):
    page = page_of("A step of <demo>", profile)
    reader = Balanced()
    reader.feed(page)
    assert reader.open == [] and "A step of &lt;demo&gt;" in page
    for text in ("Phases", "layers.*.mlp.down", "fused Sub", "not in kernels", "Alive at the peak", "loss.py:7"):
        assert text in page


def test_what_scripts_read_is_json(profile):
    found = json.loads(json.dumps(profile.to_json()))
    assert found["phases"]["data"] == pytest.approx(0.001) and found["rows"][0]["flop_s"] >= 0
    assert found["overhead"] == pytest.approx(0.08) and found["memory"]["held"]
