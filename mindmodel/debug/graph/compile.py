"""Compile a training step and keep what the compiler says: the graph, readable stages, seconds, missing operators."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

from mindmodel.debug.graph.missing_on_ascend import missing_on_ascend
from mindmodel.debug.graph.sources import Source
from mindmodel.debug.graph.stages import read_stage_sources, read_stages, saved_stages
from mindmodel.debug.graph.summary import GraphSummary, Missing, summarize
from mindmodel.dryrun.compile import compiled
from mindmodel.dryrun.graph import Graph
from mindmodel.dryrun.jobs import GRAPH_NAME, LOG_NAME, Job
from mindmodel.dryrun.mindir import load_graph
from mindmodel.errors import GraphError, first_line
from mindmodel.parallel.graph_cache import COMPILE_LOG, GraphCache
from mindmodel.recipe.schema import Recipe

TOTAL, PHASE = re.compile(r"TotalTime = ([\d.e-]+)"), re.compile(r"\[([\w-]+)\]: ([\d.e-]+)")


@dataclass(frozen=True, kw_only=True)
class CompiledStep:
    """What the compiler made.

    Attributes:
        stages: the readable graphs by name, such as 2_optimized.
        sources: lines of Python by a node's scope.
        missing: operators without a kernel.
    """

    graph: Graph
    stages: Mapping[str, str]
    sources: Mapping[str, Source]
    compile_s: Mapping[str, float]
    missing: tuple[Missing, ...]

    def summary(self, recipe: str, device: str) -> GraphSummary:
        """In numbers."""
        return summarize(
            self.graph, self.sources, recipe=recipe, device=device, compile_s=self.compile_s, missing=self.missing
        )


def compiled_anew(recipe: Recipe) -> Recipe:
    """The recipe with a runtime that compiles its step for this CPU, also where a graph of it is kept."""
    return recipe.with_keys({"runtime.device": "cpu", "runtime.mode": "graph", "runtime.compile_cache": False})


def compile_on_cpu(cell: Any, inputs: Sequence[Any], cache: GraphCache) -> CompiledStep:
    """Compile a network for this CPU, as a call of it would, without running it.

    If an operator has no kernel, all operators are tried one by one.

    After `tell_seconds`, it is also known how long that took.

    Args:
        cell, inputs: a network, and tensors of the shapes that it is called with.
        cache: where graphs are compiled.

    Raises:
        GraphError: if it does not compile for another reason.
    """
    from mindmodel.debug.graph.missing import missing_operators

    with tempfile.TemporaryDirectory(prefix="mindmodel-graph-") as name:
        folder = Path(name)
        with saved_stages(folder), cache.compiling():
            mindir, refused = _compiled(cell, inputs)
        sources, compile_s = read_stage_sources(folder), read_seconds(cache.folder / COMPILE_LOG)
        missing: tuple[Missing, ...] = ()
        if refused:
            with cache.compiling():
                missing = missing_operators(mindir, sources) or (_whole(refused),)
        return CompiledStep(
            graph=load_graph(mindir),
            stages=read_stages(folder),
            sources=sources,
            compile_s=compile_s,
            missing=missing,
        )


def export_graph(
    cell: Any, inputs: Sequence[Any], cache: GraphCache, stages: Path
) -> tuple[bytes, Mapping[str, Source]]:
    """The graph of a network before kernels are chosen, as MindIR, and the lines of Python by a node's scope.

    Args:
        cell, inputs, cache: as compile_on_cpu.
        stages: the folder of `saved_stages`, entered before anything is compiled: MindSpore heeds it from then on only.

    Raises:
        GraphError: if it does not compile.
    """
    for path in stages.rglob("*.ir"):
        path.unlink()
    with cache.compiling():
        mindir, refused = _compiled(cell, inputs)
    if refused:
        raise GraphError(f"the training step does not compile: {refused}. `mindmodel debug graph` shows more.")
    return mindir, read_stage_sources(stages)


def compile_for_ascend(recipe: Recipe, rank: int) -> CompiledStep:
    """Compile a rank of a recipe for a simulated Ascend device, and ask for the kernels of its operators.

    Raises:
        GraphError: if they cannot be asked for.
        LayoutError: if it does not compile.
        BuildError: if there is neither CANN nor a stand-in.
    """
    job = Job(name=f"rank {rank}", recipe=recipe, rank=rank, level=0, weights=False)
    with tempfile.TemporaryDirectory(prefix="mindmodel-graph-") as name, saved_stages(Path(name)):
        with compiled([job], 1) as results:
            result = results[job.name]
            folder = Path(name)
            sources = read_stage_sources(folder)
            return CompiledStep(
                graph=result.graph(),
                stages=read_stages(folder),
                sources=sources,
                compile_s=read_seconds(result.folder / LOG_NAME),
                missing=missing_on_ascend(result.folder / GRAPH_NAME, sources),
            )


def tell_seconds() -> None:
    """Have MindSpore print the seconds of its phases; to be called before it compiles anything."""
    from mindspore.graph._parse import compile_config

    compile_config.COMPILE_PROFILE = "1"


def read_seconds(log: Path) -> dict[str, float]:
    """The seconds of the first compilation in a log by phase, `total` first; nothing where MindSpore told nothing."""
    found: dict[str, float] = {}
    with open(log, errors="replace") as file:
        for line in file:
            if total := TOTAL.match(line):
                found.setdefault("total", float(total[1]))
            elif found and (phase := PHASE.match(line)):
                found.setdefault(phase[1], float(phase[2]))
    return found


def _compiled(cell: Any, inputs: Sequence[Any]) -> tuple[bytes, Optional[str]]:
    """The graph before kernels are chosen, and what MindSpore says if it then finds none."""
    from mindspore.graph.api import _cell_graph_executor as executor

    refused = None
    try:
        key, _ = executor.compile(cell, *inputs, phase="train", do_convert=False)
    except (AttributeError, NameError, RuntimeError, TypeError, ValueError) as error:
        refused = first_line(error)
        try:
            key, _ = executor.compile(cell, *inputs, phase="export.mindir", do_convert=False)
        except (AttributeError, NameError, RuntimeError, TypeError, ValueError):
            raise GraphError(f"the training step does not compile: {refused}. --debug shows all.") from error
    return executor._get_func_graph_proto(cell, key, "mind_ir"), refused


def _whole(refused: str) -> Missing:
    """Of a step that is refused, though none of its operators is when it stands alone."""
    return Missing(operator="(the whole step)", types="", count=1, reason=refused, places=(), where=())
