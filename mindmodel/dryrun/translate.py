"""MindSpore's compile errors in one line: its exception says that an operator failed, its log says why and where."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Iterator, Optional

from mindmodel.parallel.plan import LayoutRule, Plan

LOGGED = re.compile(r"^\[(?:ERROR|CRITICAL)\] (?!ME)\w+\(.*?\] ?(?:\w+\] )?(.+)$", re.MULTILINE)
RAISED = re.compile(r"^(\w*(?:Error|Exception)): (.+)$", re.MULTILINE)
CONSEQUENCE = re.compile(r"(?:CheckStrategy|Init) failed\.$")
OPERATOR_INFO = re.compile(r"^(\w+)Info\d+ ?: ")
CALLED = re.compile(r"^In file .+?:\d+, (\d+)~(\d+)/(.*)/$", re.MULTILINE)
OWN = re.compile(r"self\.([\w.]+)")


def reason(log: Path, plan: Optional[Plan] = None) -> str:
    """Why a rank's compilation failed, and where: the operator and the rule that laid it out.

    Args:
        log: everything that the process printed.
        plan: of the layout.
    """
    text = log.read_text(errors="replace") if log.is_file() else ""
    raised = [f"{kind}: {message}" for kind, message in RAISED.findall(text)]
    logged = [message for message in LOGGED.findall(text) if not CONSEQUENCE.search(message)]
    why = " | ".join(dict.fromkeys(map(_plain, logged))) or "".join(raised[-1:])
    if not why:
        return "it gave no reason; the machine may lack memory"
    rule = _rule_of(_names_called(text), plan) if plan else None
    return f"{why}. It is {_described(rule)}" if rule else why


def _plain(message: str) -> str:
    """Without the number that MindSpore gives an operator."""
    return OPERATOR_INFO.sub(r"\1: ", message).rstrip(".")


def _names_called(text: str) -> list[str]:
    """Attributes from the step down to where the compiler stopped.

    MindSpore prints the lines of source from the innermost out, and which columns of each it was in.
    """
    names: list[str] = []
    for begin, end, line in reversed(CALLED.findall(text.partition("Traceback of Net Construct")[0])):
        attribute = OWN.match(line[int(begin):int(end)])
        if attribute:
            names += attribute[1].split(".")
    return names


def _rule_of(called: list[str], plan: Plan) -> Optional[LayoutRule]:
    """The rule for the operator that was called: of several the longest path."""
    fitting = [rule for rule in plan.layouts if called and _leads_to(called, rule.path)]
    return max(fitting, key=lambda rule: len(rule.path), default=None)


def _leads_to(called: list[str], path: str) -> bool:
    """Whether the calls pass through every name of a path, in order, and end at its last."""
    names = [name for name in path.split(".") if name != "*"]
    if names[-1] != called[-1]:
        return False
    remaining: Iterator[str] = iter(called)
    return all(name in remaining for name in names)


def _described(rule: LayoutRule) -> str:
    operands = ", ".join(str(axes) for axes in rule.inputs)
    return f"'{rule.path}', cut by the plan's rule of that path over {operands}"
