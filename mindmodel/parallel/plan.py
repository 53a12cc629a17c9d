"""Plans: tables that say over which mesh axes each operator and parameter of a model is cut. Pure Python.

A path is the attribute names from the network down to an operator or parameter, joined by dots; in a pattern `*`
stands for any one name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Iterable, Optional, TypeVar, Union

from mindmodel.errors import LayoutError
from mindmodel.parallel.mesh import Axes, Axis, Mesh, Shape, local_shape, names

SHOWN_PATHS = 8

Cuts = tuple[Union[Axis, int], ...]
"""Of an operand, one entry a dim: axes, or a number of pieces where neighbours of an axis have the same piece."""


@dataclass(frozen=True, kw_only=True)
class LayoutRule:
    """Over which axes an operator's operands are cut, one entry each; and its results, where that is not implied."""

    path: str
    inputs: tuple[Cuts, ...]
    outputs: Optional[tuple[Cuts, ...]] = None


@dataclass(frozen=True, kw_only=True)
class ParameterRule:
    """Over which axes a parameter is cut: what the operators that use it imply."""

    path: str
    axes: Axes


@dataclass(frozen=True, kw_only=True)
class StageRule:
    """The pipeline stage that a Cell belongs to, and which of the stage's chunks where stages interleave."""

    path: str
    stage: int
    chunk: int = 0


@dataclass(frozen=True, kw_only=True)
class RecomputeRule:
    """A Cell or operator whose results are computed again in the backward pass instead of kept."""

    path: str


@dataclass(frozen=True, kw_only=True)
class LocalRule:
    """A Cell in whose place one of mindmodel/parallel/local_layers.py computes, and which."""

    path: str
    layer: str


@dataclass(frozen=True, kw_only=True)
class CopyRule:
    """A Cell of attention that copies every KV head, so that each rank of tp has one."""

    path: str
    copies: int


@dataclass(frozen=True, kw_only=True)
class SeenRule:
    """A Cell whose output's sum of squares is found where norms are asked for, and over which axes that is cut."""

    path: str
    axes: Axes


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a network is laid out over a mesh."""

    layouts: tuple[LayoutRule, ...]
    parameters: tuple[ParameterRule, ...]
    stages: tuple[StageRule, ...] = ()
    recompute: tuple[RecomputeRule, ...] = ()
    copies: tuple[CopyRule, ...] = ()
    local: tuple[LocalRule, ...] = ()
    seen: tuple[SeenRule, ...] = ()

    def axes_of(self, parameter: str) -> Axes:
        """Over which axes a parameter is cut.

        Raises:
            LayoutError: if no rule, or more than one, names it.
        """
        return match_all([parameter], self.parameters, "parameter", every_rule=False)[parameter].axes

    def stage_of(self, parameter: str) -> int:
        """The pipeline stage that holds a parameter; of a tied embedding, which two use, the one that updates it.

        MindSpore sends it to the other stage before a step and its gradient back; the copy there is out of date.
        """
        for rule in self.stages:
            if f"decoder.{parameter}".startswith(f"{rule.path}."):
                return rule.stage
        return 0


Rule = TypeVar("Rule", LayoutRule, ParameterRule, StageRule, RecomputeRule, CopyRule, LocalRule, SeenRule)


def matches(pattern: str, path: str) -> bool:
    """Whether a path is one of a pattern's."""
    return re.fullmatch(re.escape(pattern).replace(r"\*", r"[^.]+"), path) is not None


def match(paths: Iterable[str], rules: tuple[Rule, ...], kind: str) -> list[tuple[str, Rule]]:
    """Every path with each rule that names it, in the rules' order.

    Raises:
        LayoutError: if a rule names nothing.
    """
    paths, found = list(paths), []
    for rule in rules:
        named = [path for path in paths if matches(rule.path, path)]
        if not named:
            near = ", ".join(path for path in paths if path.endswith(rule.path.rsplit(".", 1)[-1])) or "none alike"
            raise LayoutError(f"plan: '{rule.path}' names no {kind} of the model. It has {near}. Mend the plan's rule.")
        found += [(path, rule) for path in named]
    return found


def match_all(
    paths: Iterable[str], rules: tuple[Rule, ...], kind: str, every_rule: bool = True
) -> dict[str, Rule]:
    """For every path the one rule that names it.

    Raises:
        LayoutError: if a path has no rule or two, or (`every_rule`) a rule names nothing.
    """
    paths = list(paths)
    if every_rule:
        match(paths, rules, kind)
    found = {path: [rule for rule in rules if matches(rule.path, path)] for path in paths}
    missing = [path for path, named in found.items() if not named]
    if missing:
        more = f" and {len(missing) - SHOWN_PATHS} more" if len(missing) > SHOWN_PATHS else ""
        raise LayoutError(
            f"plan: no rule for {kind} {', '.join(missing[:SHOWN_PATHS])}{more}; between neighbours that are cut it "
            "would be gathered whole. Add a rule to the family's table in mindmodel/parallel/plans."
        )
    for path, named in found.items():
        if len(named) > 1:
            raise LayoutError(f"plan: {kind} {path} has two rules, '{named[0].path}' and '{named[1].path}'. Keep one.")
    return {path: named[0] for path, named in found.items()}


def sharded_axes(axes: Axes, shape: Shape, mesh: Mesh) -> Axes:
    """The axes of a parameter when optimizer sharding cuts its first dim further, over all ranks that hold copies.

    MindSpore leaves a parameter whole whose first dim those ranks do not divide.
    """
    used = {name for axis in axes for name in names(axis)}
    free = tuple(name for name in ("dp", "cp", "tp") if name not in used)
    if local_shape(shape, axes, mesh)[0] % mesh.degree(free):
        return axes
    return (names(axes[0]) + free, *axes[1:])


def held_axes(plan: Plan, parameter: str, shape: Shape, mesh: Mesh, sharded: bool) -> Axes:
    """Over which axes a parameter and its moments are cut where a rank keeps them.

    Args:
        sharded: whether optimizer sharding is on, at any level.

    Raises:
        LayoutError: if no rule, or more than one, names the parameter, or its cuts do not divide it.
    """
    axes = plan.axes_of(parameter)
    return sharded_axes(axes, shape, mesh) if sharded else axes
