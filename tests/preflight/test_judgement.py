"""The table stays readable for many nodes, and says what is off and where."""

from __future__ import annotations

import pytest

from mindmodel.preflight.judgement import MAX_COLUMNS, MAX_FAULTS, WIDTH, judge, node_names
from mindmodel.preflight.report import MAX_TEXT, Fact, Report, report_of


def report(**facts: Fact) -> Report:
    """Of a node on which all is well, but for these facts."""
    return Report(
        host="gpu07",
        facts={"python": Fact(text="3.11.4"), "free disk": Fact(text="1.0 GiB", amount=1.0), **facts},
        recipe={"train.steps": "10"},
    )


@pytest.mark.parametrize(
    "nodes, name",
    [
        ([3], "node 3"),
        ([0, 1], "nodes 0-1"),
        ([5, 0, 1, 2], "nodes 0-2, 5"),
        (range(1024), "nodes 0-1023"),
        (range(0, 1024, 2), "512 nodes"),
    ],
)
def test_nodes_are_named_in_few_words(nodes, name):
    assert node_names(list(nodes)) == name


def test_a_thousand_nodes_that_agree_are_one_column():
    judgement = judge({node: report() for node in range(1024)})
    assert judgement.fit
    assert judgement.lines == [
        "           nodes 0-1023",
        "python     3.11.4",
        "free disk  1.0 GiB",
        "",
        "all is well",
    ]


def test_one_of_a_thousand_stands_in_a_column_of_its_own_and_is_marked():
    reports = {node: report() for node in range(1024)} | {7: report(python=Fact(text="3.10.2"))}
    judgement = judge(reports)
    assert not judgement.fit
    assert judgement.lines == [
        "           nodes 0-6, 8-1023  node 7",
        "python     3.11.4             ! 3.10.2",
        "free disk  1.0 GiB            1.0 GiB",
        "",
        "! node 7 (gpu07), python: 3.10.2; nodes 0-6, 8-1023: 3.11.4. Use the same environment on every node.",
    ]


def test_what_may_differ_is_shown_from_least_to_most():
    amounts = {0: 3.0, 1: 0.5, 2: 2.0}
    judgement = judge({node: report(disk=Fact(text=f"{size} GiB", amount=size)) for node, size in amounts.items()})
    assert judgement.fit and "disk       0.5 GiB to 3.0 GiB" in judgement.lines
    texts = {0: "no npu-smi", 1: "8 of 8 OK", 2: "8 of 8 OK"}
    judgement = judge({node: report(chips=Fact(text=text)) for node, text in texts.items()})
    assert judgement.fit and "chips      no npu-smi / 8 of 8 OK" in judgement.lines


def test_nodes_with_the_same_fault_share_a_line():
    full = Fact(text="0.1 GiB", fault="too little.", amount=0.1)
    reports = {node: report(**({"free disk": full} if node in (2, 3) else {})) for node in range(5)}
    assert judge(reports).lines[-1] == "! nodes 2-3, free disk: too little."


def test_of_two_halves_the_one_with_node_0_is_right():
    old, new = report(), report(python=Fact(text="3.12.1"))
    assert "! nodes 2-3, python: 3.12.1; nodes 0-1: 3.11.4." in judge({0: old, 1: old, 2: new, 3: new}).lines[-1]
    assert "! node 0 (gpu07), python: 3.12.1; nodes 1-2: 3.11.4." in judge({0: new, 1: old, 2: old}).lines[-1]


def test_very_many_differences_stay_readable():
    reports = {node: report(python=Fact(text=f"3.11.{node}", fault=f"fault {node}.")) for node in range(1024)}
    lines = judge(reports).lines
    table = lines[: lines.index("! node 0 (gpu07), python: fault 0.")]
    assert max(map(len, table)) <= WIDTH and len(lines) < 60
    assert f"and {1024 - MAX_COLUMNS} more nodes, each of them with something of its own" in lines
    assert lines[-1] == f"! and {1024 - MAX_FAULTS} more"


def test_columns_that_do_not_fit_stand_below():
    reports = {node: report(python=Fact(text=f"3.11.{node} of this node")) for node in range(4)}
    lines = judge(reports).lines
    assert [line for line in lines if "node 0" in line][0] != [line for line in lines if "node 3" in line][0]
    assert max(len(line) for line in lines if not line.startswith("!")) <= WIDTH


def test_a_row_that_a_node_does_not_tell_is_off():
    silent = Report(host="gpu09", facts={"python": Fact(text="3.11.4")}, recipe={})
    judgement = judge({0: report(), 1: silent})
    assert not judgement.fit and "! node 1 (gpu09), free disk: this node does not tell. Install" in judgement.lines[-1]


def test_of_many_keys_that_differ_the_first_are_named():
    mine = Report(host="h", facts={"recipe": Fact(text="a")}, recipe={f"k{number}": "1" for number in range(5)})
    other = Report(host="h", facts={"recipe": Fact(text="b")}, recipe={f"k{number}": "2" for number in range(5)})
    told = "k0 is 2, there 1; k1 is 2, there 1; k2 is 2, there 1; and 2 more. Start"
    assert told in judge({0: mine, 1: other}).lines[-1]


def test_a_report_survives_its_way():
    there = report(chips=Fact(text="7 of 8\nOK", fault="x" * 2 * MAX_TEXT))
    back = report_of(there.to_message())
    assert back.facts["python"] == there.facts["python"] and back.recipe == there.recipe
    assert back.facts["chips"] == Fact(text="7 of 8 OK", fault="x" * MAX_TEXT)


def test_a_report_cannot_change_the_terminal_that_shows_it():
    message = report().to_message()
    message["facts"]["python"][0] = "\x1b[31m3.11.4"
    assert "\x1b" not in report_of(message).facts["python"].text


@pytest.mark.parametrize(
    "damage, told",
    [
        ({"facts": []}, "a report without facts"),
        ({"facts": {str(number): ["", "", 0] for number in range(300)}}, "a report without facts"),
        ({"host": 7}, "a report with a text that is none, or too long"),
        ({"recipe": {"train.steps": "1" * 500}}, "a report with a text that is none, or too long"),
        ({"facts": {"python": ["3.11", ""]}}, "a report with a fact that is none"),
    ],
)
def test_what_is_no_report_is_refused(damage, told):
    with pytest.raises(ValueError, match=told):
        report_of({**report().to_message(), **damage})
