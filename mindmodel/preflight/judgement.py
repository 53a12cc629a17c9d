"""Do the nodes agree, is each of them fit, and one table that says so, however many there are."""

from __future__ import annotations

from collections import Counter
from typing import Iterable, Iterator, Mapping, NamedTuple, Sequence

from mindmodel.preflight.report import Fact, Report

WIDTH = 79
MAX_CELL = 24
MAX_COLUMNS = 8
MAX_FAULTS = 40
SHOWN_KEYS = 3
OFF = "!"

MUST_AGREE = {
    "mindmodel": "Install the same on every node.",
    "code": "The files of mindmodel differ: install the same on every node.",
    "recipe": "Start the same recipe with the same key=value on every node.",
    "python": "Use the same environment on every node.",
    "mindspore": "Use the same environment on every node.",
    "numpy": "Use the same environment on every node.",
    "device": "Set runtime.device, or leave the node out.",
    "CANN": "Install the same on every node.",
    "kernels": "Set runtime.cpu_kernels=graph, or install g++ on every node.",
    "data": "Names or sizes of files differ: mount or copy the same on every node.",
    "init_from": "Names or sizes of files differ: mount or copy the same on every node.",
}
"""Rows whose text must be equal on all nodes, with what works when it is not."""

ABSENT = Fact(text="not told", fault="this node does not tell. Install the same mindmodel on every node.")


class Judgement(NamedTuple):
    """Whether all is well, and the lines that say so."""

    fit: bool
    lines: list[str]


class Off(NamedTuple):
    """One thing in the way, and where."""

    row: str
    why: str


def judge(reports: Mapping[int, Report]) -> Judgement:
    """Compare what the nodes report.

    Args:
        reports: by node, node 0's among them.
    """
    rows = list(reports[0].facts)
    facts = {row: {node: report.facts.get(row, ABSENT) for node, report in reports.items()} for row in rows}
    off = {row: dict(_off(row, facts[row], reports)) for row in rows}
    lines = [*_table(facts, off), "", *_faults(off, reports)]
    return Judgement(fit=not any(off.values()), lines=lines)


def _off(row: str, facts: Mapping[int, Fact], reports: Mapping[int, Report]) -> Iterator[tuple[int, str]]:
    """Nodes that are not fit in a row, or not as most of them are, or as node 0 is where no side is larger."""
    counts = Counter(fact.text for fact in facts.values())
    common = max(counts, key=lambda text: (counts[text], text == facts[0].text))
    others = node_names([node for node, fact in facts.items() if fact.text == common])
    for node, fact in facts.items():
        if fact.fault:
            yield node, fact.fault
        elif row in MUST_AGREE and fact.text != common:
            keys = _unequal_keys(reports, node, facts, common) if row == "recipe" else ""
            yield node, f"{fact.text}; {others}: {common}. {keys}{MUST_AGREE[row]}"


def _unequal_keys(reports: Mapping[int, Report], node: int, facts: Mapping[int, Fact], common: str) -> str:
    """The keys of a recipe that differ, with both values."""
    mine = reports[node].recipe
    usual = next(reports[other].recipe for other, fact in facts.items() if fact.text == common)
    keys = [key for key in {**usual, **mine} if mine.get(key) != usual.get(key)]
    shown = [f"{key} is {mine.get(key)}, there {usual.get(key)}" for key in keys[:SHOWN_KEYS]]
    return "; ".join(shown) + (f"; and {len(keys) - SHOWN_KEYS} more. " if len(keys) > SHOWN_KEYS else ". ")


def node_names(nodes: Sequence[int]) -> str:
    """Nodes in words: `node 3`, `nodes 0-2, 5`; a count where that would be long."""
    if len(nodes) == 1:
        return f"node {nodes[0]}"
    spans: list[list[int]] = []
    for node in sorted(nodes):
        if spans and spans[-1][1] == node - 1:
            spans[-1][1] = node
        else:
            spans.append([node, node])
    text = "nodes " + ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
    return text if len(text) <= MAX_CELL else f"{len(nodes)} nodes"


def _table(facts: Mapping[str, Mapping[int, Fact]], off: Mapping[str, Mapping[int, str]]) -> Iterator[str]:
    """Rows are what was checked; a column is all nodes that are alike."""
    alike: dict[tuple, list[int]] = {}
    for node in next(iter(facts.values())):
        alike.setdefault(tuple(_look(row, facts[row][node], node in off[row]) for row in facts), []).append(node)
    columns = [_column(nodes, facts, off) for nodes in alike.values()]
    names = ["", *facts]
    yield from _blocks(names, columns[:MAX_COLUMNS])
    if len(columns) > MAX_COLUMNS:
        left = sum(len(nodes) for nodes in list(alike.values())[MAX_COLUMNS:])
        yield f"and {left} more nodes, each of them with something of its own"


def _look(row: str, fact: Fact, is_off: bool) -> tuple[bool, str]:
    """What a node must share with another to stand in the same column."""
    return is_off, fact.text if is_off or row in MUST_AGREE else ""


def _column(
    nodes: Sequence[int], facts: Mapping[str, Mapping[int, Fact]], off: Mapping[str, Mapping[int, str]]
) -> list[str]:
    cells = [node_names(nodes)]
    for row, by_node in facts.items():
        text = _range([by_node[node] for node in nodes])
        cells.append(f"{OFF} {text}" if nodes[0] in off[row] else text)
    return [cell[:MAX_CELL] for cell in cells]


def _range(facts: Sequence[Fact]) -> str:
    """All texts of a cell: the smallest and the largest, where they can be ordered."""
    low, high = (choose(facts, key=lambda fact: fact.amount) for choose in (min, max))
    if low.amount < high.amount:
        return low.text if low.text == high.text else f"{low.text} to {high.text}"
    return " / ".join(dict.fromkeys(fact.text for fact in facts))


def _blocks(names: Sequence[str], columns: Sequence[Sequence[str]]) -> Iterator[str]:
    """The columns beside each other, below each other where the width ends."""
    widths = [max(map(len, column)) for column in columns]
    head = max(map(len, names))
    while columns:
        count, used = 0, head
        while count < len(columns) and (count == 0 or used + 2 + widths[count] <= WIDTH):
            used += 2 + widths[count]
            count += 1
        for number, name in enumerate(names):
            cells = [f"{column[number]:<{width}}" for column, width in zip(columns[:count], widths)]
            yield "  ".join([f"{name:<{head}}", *cells]).rstrip()
        columns, widths = columns[count:], widths[count:]
        if columns:
            yield ""


def _faults(off: Mapping[str, Mapping[int, str]], reports: Mapping[int, Report]) -> Iterable[str]:
    """What is off, a line for all nodes that share it."""
    shared: dict[Off, list[int]] = {}
    for row, by_node in off.items():
        for node, why in by_node.items():
            shared.setdefault(Off(row, why), []).append(node)
    if not shared:
        return ["all is well"]
    lines = []
    for (row, why), nodes in shared.items():
        host = f" ({reports[nodes[0]].host})" if len(nodes) == 1 and len(reports) > 1 else ""
        lines.append(f"{OFF} {node_names(nodes)}{host}, {row}: {why}")
    hidden = len(lines) - MAX_FAULTS
    return lines[:MAX_FAULTS] + ([f"{OFF} and {hidden} more"] if hidden > 0 else [])
