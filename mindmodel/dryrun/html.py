"""Web pages that are one file without scripts and need nothing from elsewhere; they follow light and dark settings."""

from __future__ import annotations

from html import escape
from itertools import zip_longest
from typing import Iterable, Mapping, Sequence

STYLE = """\
:root { color-scheme: light dark; --text: #1c1e21; --back: #ffffff; --line: #c9ccd1; --soft: #f3f4f6; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e6eb; --back: #16181c; --line: #43474e; --soft: #22252b; } }
body { margin: 2rem auto; max-width: 72rem; padding: 0 1rem; font: 15px/1.45 system-ui, sans-serif;
       color: var(--text); background: var(--back); }
svg { width: 100%; height: auto; } svg text { font-size: 11px; fill: var(--text); }
.grid { stroke: var(--line); stroke-width: .5; } .peak { stroke: var(--text); stroke-dasharray: 4 3; }
.hit { fill: transparent; } .hit:hover { fill: var(--text); fill-opacity: .18; }
.box { display: inline-block; width: .8em; height: .8em; margin: 0 .35em 0 1em; border-radius: 2px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; margin: .5rem 0 1.5rem; }
th, td { padding: .2rem .6rem; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { background: var(--soft); } .n { text-align: right; font-variant-numeric: tabular-nums; }
"""


def document(title: str, body: str, style: str = "") -> str:
    """A page.

    Args:
        body: HTML below the title.
        style: CSS beside that of all pages.
    """
    return f"""\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(title)}</title><style>
{STYLE}{style}</style></head><body>
<h1>{escape(title)}</h1>
{body}
</body></html>
"""


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], left: int, ends: Sequence[str] = ()) -> str:
    """A table.

    Args:
        left: so many columns hold words, and the others numbers.
        ends: HTML of a last cell for each row, which has no title.
    """
    kinds = ["" if column < left else ' class="n"' for column in range(len(titles))]
    head = "".join(f"<th{kind}>{escape(title)}</th>" for kind, title in zip(kinds, titles))
    body = "\n".join(
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row)) + f"{end}</tr>"
        for row, end in zip_longest(rows, ends, fillvalue="")
    )
    return f'<div class="wide"><table><tr>{head}{"<th></th>" if ends else ""}</tr>\n{body}</table></div>'


def legend(colours: Mapping[str, str]) -> str:
    """Names with their colours."""
    boxes = (
        f'<span class="box" style="background:{colour}"></span>{escape(name)}' for name, colour in colours.items()
    )
    return f"<p>{''.join(boxes)}</p>"
