"""What a change did to a graph: two summaries side by side."""

from __future__ import annotations

from collections import Counter
from typing import Callable, Iterator

from mindmodel.debug.graph.summary import GraphSummary


def changes(old: GraphSummary, new: GraphSummary) -> list[str]:
    """A line for each difference, nodes first; none if the graphs are alike but for seconds and lines of Python."""
    lines = [f"nodes {old.num_nodes} -> {new.num_nodes}"] if old.num_nodes != new.num_nodes else []
    for title, table in TABLES.items():
        before, after = table(old), table(new)
        for key in dict.fromkeys([*before, *after]):
            if before[key] != after[key]:
                lines.append(f"{title} {key}: {before[key]:,} -> {after[key]:,}")
    return lines


def _kinds(summary: GraphSummary) -> Counter[str]:
    return Counter(dict(summary.kinds))


def _casts(summary: GraphSummary) -> Counter[str]:
    rows = summary.casts
    return _added((f"{row.before} to {row.after} of {row.origin}", row.count) for row in rows)


def _parameters(summary: GraphSummary) -> Counter[str]:
    return _added((f"{row.name} {row.type}", row.count) for row in summary.parameters)


def _constants(summary: GraphSummary) -> Counter[str]:
    return _added((f"{row.type} in {row.place}", row.copies) for row in summary.constants)


def _layers(summary: GraphSummary) -> Counter[str]:
    return Counter({part: sum(counts) for part, counts in summary.layers.items()})


def _missing(summary: GraphSummary) -> Counter[str]:
    return _added((f"{row.operator} ({row.types})", row.count) for row in summary.missing)


def _added(rows: Iterator[tuple[str, int]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for key, count in rows:
        found[key] += count
    return found


TABLES: dict[str, Callable[[GraphSummary], Counter[str]]] = {
    "operator": _kinds,
    "part": _layers,
    "cast": _casts,
    "constant": _constants,
    "parameter": _parameters,
    "no kernel for": _missing,
}
