"""The page of what is alive in a step: a plot with titles, and tables; nothing from elsewhere."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from mindmodel.dryrun.live_page import BOTTOM, KIND_COLOURS, LEFT, PHASE_COLOURS, RIGHT, TOP, page_of
from mindmodel.dryrun.memory_trace import LIVE_KINDS
from mindmodel.dryrun.scopes import PlacedKernel
from step_trace import live_in, live_with

ALONE = ("meta", "br", "hr", "img", "link")


@pytest.fixture
def live(tmp_path):
    return live_in(tmp_path)


@pytest.fixture
def page(live):
    return page_of("Live memory of demo", "dp=2 tp=2", {3: live})


@pytest.fixture
def plot(page):
    return ElementTree.fromstring(re.search("<svg.*</svg>", page, re.DOTALL)[0])


class Balance(HTMLParser):
    """Counts elements that are open, and collects the cells of tables."""

    def __init__(self):
        super().__init__()
        self.open, self.cells = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ALONE:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        """Closed by itself."""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def test_all_elements_are_closed_and_the_tables_have_the_numbers(page):
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    expected = {"layers.0", "loss", "rest", "layers.*.mlp.down.weight", "Cast > AllGather", "10 x 6"}
    assert expected <= set(parser.cells)


def test_it_says_what_and_where_the_peak_is(page):
    assert "<h2>Rank 3</h2><p>756 B at the peak, in kernel 9 of 16: Mul of loss, backward.</p>" in page


def test_it_needs_nothing_from_elsewhere_and_follows_light_and_dark(page):
    assert not re.search(r"<script|<link|https?:|url\(|@import", page)
    assert "prefers-color-scheme: dark" in page


def test_kinds_are_stacked_up_to_the_peak(plot):
    areas = [path for path in plot.iter("path") if path.get("fill") in KIND_COLOURS.values()]
    assert [area.find("title").text for area in areas] == [kind for kind in LIVE_KINDS if kind != "other"]
    heights = [float(y) for area in areas for y in re.findall(r"V([\d.]+)", area.get("d"))]
    assert min(heights) == TOP and max(heights) == BOTTOM


def test_each_kernel_has_a_title_with_its_bytes(plot):
    titles = [rect.find("title").text for rect in plot.iter("rect") if rect.get("class") == "hit"]
    assert len(titles) == 16
    assert titles[8].startswith("9: Mul of loss, backward\n") and "\nlogits " in titles[8]


def test_phases_follow_one_another_below_the_plot(plot):
    stripes = [rect for rect in plot.iter("rect") if rect.get("fill") in PHASE_COLOURS.values()]
    assert [stripe.get("fill") for stripe in stripes] == [
        PHASE_COLOURS[phase] for phase in ("forward", "backward", "optimizer")
    ]
    edges = [(float(stripe.get("x")), float(stripe.get("width"))) for stripe in stripes]
    assert edges[0][0] == LEFT and sum(edges[-1]) == pytest.approx(RIGHT, abs=0.2)


def test_names_cannot_break_the_page():
    kernel = PlacedKernel(operator="<b>", place="a & b", phase="forward")
    live = dataclasses.replace(live_with(weights=1), kernels=(kernel,))
    page = page_of("<i>", "</p>", {0: live})
    assert "<b>" not in page and "<i>" not in page and "&lt;b&gt; of a &amp; b" in page


def test_a_step_of_many_kernels_stays_below_a_megabyte(live):
    curve = {kind: tuple(number * 2**20 + step % 7 for step, number in enumerate(numbers * 500))
             for kind, numbers in live.curve.items()}
    long = dataclasses.replace(live, peak_bytes=771 * 2**20, kernels=live.kernels * 500, curve=curve)
    assert len(page_of("long", "", {0: long})) < 1_000_000


@pytest.mark.parametrize(
    "peak, labels",
    [
        (21 * 2**30, ["0 GiB", "5 GiB", "10 GiB", "15 GiB", "20 GiB"]),
        (3 * 2**19, ["0 MiB", "0.5 MiB", "1 MiB", "1.5 MiB"]),
    ],
)
def test_the_axis_has_round_numbers(peak, labels):
    page = page_of("axis", "", {0: live_with(weights=peak)})
    assert re.findall(r'text-anchor="end">([\d.]+ .iB)<', page) == labels
