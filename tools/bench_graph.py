"""The graph that an Ascend chip would run: mindmodel's beside MindFormers' own Llama and beside hand-made bounds.

usage: python tools/bench_graph.py                                      (half an hour; neither chip nor CANN is needed)
       python tools/bench_graph.py --layout dp2tp4 dp2tp4-sp --layers 4,8 --json
       python tools/bench_graph.py --layout dp8tp8-sp --layers 32 --rival mindmodel bound
       python tools/bench_graph.py --rival mindmodel --set parallel.shard_optimizer=gradients

Each layout of Llama 7B is compiled for one rank by MindSpore's own compiler, which then plays a step
(MS_SIMULATION_LEVEL=1): both sides through the same, with clipping and the finite check on. 32 layers are extrapolated
from two depths unless --layers has 32; only a model of that depth shows whether its peak lies where theirs do. Nothing
is timed on a chip, and neither workspaces of kernels nor buffers of the communication are seen.

Rivals: mindmodel, from the recipe tools/bench/graph.yaml and --set. mindmodel-kept: under sequence parallelism, with
gathered_tokens=kept, more memory and less wire. mindmodel-lean: with what is cheap computed again
(recompute=selective) and, where no micro-batches are added up, reduce_dtype=compute. mindformers: legacy Llama, as
its Trainer builds the step from the published settings. mindformers-inline: with the model lazily inlined, which that
Trainer switches off without a pipeline. mindformers-tuned: with the best settings that its YAML files may have.
bound: by hand, see tools/bench/graph_bounds.py.

Columns: GiB in memory at the peak; GiB that the rank's links carry in a step: rings, and both ways between stages;
kernels a layer: the difference of two depths over the difference in layers, without views, events, collectives and the
update (of a stage: all micro-batches, over the stages); kernels of the update, which is optimizer, learning rate,
clipping and finite check, over the parameters' tensors; CPU seconds of the compilation without imports. Ratios are
mindmodel's over the other's. The exit code is 1 if a rival does not compile, 2 if none can be.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Optional, Sequence

from bench.graph_bounds import gathered_again_bytes, peak_bytes, sizes_of, wire_bytes
from bench.graph_counts import Counts, read_counts
from bench.graph_layouts import LAYOUTS, Layout
from bench.mindformers_graph import RUNTIME
from bench.rivals import LOG_LINES, ChildFailed, environment, table, write_json

from mindmodel.dryrun import compile as dryrun
from mindmodel.dryrun.jobs import LOG_NAME, RESULT_NAME, Job
from mindmodel.errors import LayoutError, MindModelError
from mindmodel.parallel.mesh import mesh_of
from mindmodel.recipe.dump import recipe_to_dict
from mindmodel.recipe.schema import Recipe

PLAIN: dict[str, Any] = {"model": {}, "optimizer": {}}
INLINE: dict[str, Any] = {"model": {"disable_lazy_inline": False}, "optimizer": {}}
TUNED: dict[str, Any] = {
    "model": {
        "parallel_optimizer": True,
        "use_attn_mask_compression": True,
        "qkv_concat": True,
        "layernorm_compute_type": "bfloat16",
        "rotary_dtype": "bfloat16",
    },
    "optimizer": {"use_fused": True},
}
"""The embedding's state split, no dense mask, fused projections and AdamW, norms and rotation in mindmodel's dtype."""
Recipes = Mapping[int, Recipe]
"""By layers, the deepest last."""
OURS, KEPT, LEAN, PEER, BOUND = "mindmodel", "mindmodel-kept", "mindmodel-lean", "mindformers", "bound"
TARGET = 32
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Row:
    """Figures of a rival; None is what was not counted. `extrapolated`: no model so deep was compiled."""

    layout: str
    rival: str
    layers: int
    peak_bytes: int
    wire_bytes: int
    kernels_per_layer: Optional[float] = None
    optimizer_kernels_per_tensor: Optional[float] = None
    compile_cpu_s: Optional[float] = None
    extrapolated: bool = False


def kept(recipe: Recipe) -> Recipe:
    """With the tokens that are gathered kept for the backward pass."""
    return recipe.with_keys({"parallel.gathered_tokens": "kept"})


def lean(recipe: Recipe) -> Recipe:
    """With the settings that take least memory and wire at less than a percent more FLOP."""
    old = recipe.parallel
    recompute = "selective" if old.recompute == "none" else old.recompute
    reduce_dtype = "compute" if old.micro_batches == old.pp == 1 else old.reduce_dtype
    return recipe.with_keys({"parallel.recompute": recompute, "parallel.reduce_dtype": reduce_dtype})


def of_mindmodel(changed: Callable[[Recipe], Recipe]) -> Callable[[Recipe, int], Counts]:
    """Compile our step of a changed recipe."""

    def run(recipe: Recipe, rank: int) -> Counts:
        job = Job(name="rank", recipe=changed(recipe), rank=rank, level=1)
        with dryrun.compiled([job], at_once=1) as results:
            found = results[job.name]
            return _read(found.folder, job, found.result)

    return run


def of_mindformers(settings: dict[str, Any]) -> Callable[[Recipe, int], Counts]:
    """Compile MindFormers' step of the same sizes and layout."""

    def run(recipe: Recipe, rank: int) -> Counts:
        job = Job(name="rank", recipe=recipe, rank=rank, level=1)
        spec = {"recipe": recipe_to_dict(recipe), "rank": rank, "settings": settings}
        variables = {**dryrun.environment(job.level), **RUNTIME, "RANK_SIZE": str(job.num_ranks), "RANK_ID": str(rank)}
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            folder = Path(name)
            with open(folder / LOG_NAME, "wb") as log:
                command = [sys.executable, "-m", "bench.mindformers_graph", json.dumps(spec)]
                done = subprocess.run(command, cwd=folder, env=environment(**variables), stdout=log, stderr=log)
            if done.returncode:
                tail = (folder / LOG_NAME).read_text(errors="replace").splitlines()[-LOG_LINES:]
                raise ChildFailed("\n".join([f"mindformers_graph: exit code {done.returncode}", *tail]))
            return _read(folder, job, json.loads((folder / RESULT_NAME).read_text()))

    return run


def _read(folder: Path, job: Job, result: dict[str, Any]) -> Counts:
    mesh = mesh_of(job.recipe.parallel)
    return read_counts(folder / f"rank_{job.rank}", job.rank, mesh, result["peak_bytes"], result["cpu_s"])


RIVALS: dict[str, Callable[[Recipe, int], Counts]] = {
    OURS: of_mindmodel(lambda recipe: recipe),
    KEPT: of_mindmodel(kept),
    LEAN: of_mindmodel(lean),
    PEER: of_mindformers(PLAIN),
    f"{PEER}-inline": of_mindformers(INLINE),
    f"{PEER}-tuned": of_mindformers(TUNED),
}
"""Name -> what compiles it; the bound is computed."""


def rows_of(layout: Layout, rival: str, found: dict[int, Counts]) -> list[Row]:
    """One for each depth that was compiled, and from two depths one for TARGET layers."""
    depths = sorted(found)
    counts, slope = dict(found), None
    if len(depths) > 1:
        near, far = depths
        slope = (found[far].network_kernels - found[near].network_kernels) / (far - near)
        counts.setdefault(TARGET, found[near].extrapolated(found[far], (TARGET - near) / (far - near)))
    return [
        Row(
            layout=layout.name,
            rival=rival,
            layers=layers,
            peak_bytes=round(count.peak_bytes),
            wire_bytes=round(count.wire_bytes),
            kernels_per_layer=slope,
            optimizer_kernels_per_tensor=count.update_kernels / count.tensors,
            compile_cpu_s=count.compile_cpu_s,
            extrapolated=layers not in found,
        )
        for layers, count in sorted(counts.items())
    ]


def bound_rows(layout: Layout, recipes: Recipes) -> Iterator[Row]:
    """The bound at the depths of the others."""
    for layers, recipe in recipes.items():
        sizes = sizes_of(recipe, layout.rank)
        peak, wire = round(peak_bytes(sizes)), round(wire_bytes(sizes))
        yield Row(layout=layout.name, rival=BOUND, layers=layers, peak_bytes=peak, wire_bytes=wire)


def measure(layout: Layout, recipes: Recipes, args: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """Rows of all rivals, and what became of those that failed."""
    rows, failures = [], []
    for rival in args.rival:
        if rival == BOUND:
            rows += bound_rows(layout, recipes)
            continue
        if rival == KEPT and not layout.sequence_parallel:
            continue
        try:
            found = {}
            for layers in args.layers:
                print(f"compiling {layout.name}, {layers} layers: {rival}", file=sys.stderr, flush=True)
                found[layers] = RIVALS[rival](recipes[layers], layout.rank)
            rows += rows_of(layout, rival, found)
        except (ChildFailed, LayoutError) as error:
            failures.append(f"{layout.name}: {rival} failed: {error}")
    return rows, failures


def show(layout: Layout, recipes: Recipes, rows: Sequence[Row]) -> str:
    """The table of a layout, for the deepest model."""
    deepest = max(recipes)
    shown = [row for row in rows if row.layers == deepest]
    ours = next((row for row in shown if row.rival == OURS), None)
    header = ["rival", "layers", "peak_GiB", "ratio", "wire_GiB", "ratio", "kernels/layer"]
    header += ["update/tensor", "compile_s"]
    title = f"{layout.name}, rank {layout.rank} of {layout.dp * layout.tp * layout.pp}"
    notes = []
    if any(row.extrapolated for row in shown):
        compiled = sorted({row.layers for row in rows if not row.extrapolated and row.rival != BOUND})
        notes.append(f"* extrapolated on the line through {' and '.join(map(str, compiled))} layers")
    again = gathered_again_bytes(sizes_of(recipes[deepest], layout.rank))
    if again and any(row.rival == BOUND for row in shown):
        notes.append(f"the bound of the peak needs inputs gathered again: {again / GIB:.2f} GiB more on the wire")
    return "\n".join([title, table(header, [_cells(row, ours) for row in shown]), *notes, ""])


def _cells(row: Row, ours: Optional[Row]) -> list[str]:
    """Of the table, under its header."""
    return [
        row.rival,
        f"{row.layers}{'*' * row.extrapolated}",
        f"{row.peak_bytes / GIB:.2f}",
        _over(ours, row, "peak_bytes"),
        f"{row.wire_bytes / GIB:.2f}",
        _over(ours, row, "wire_bytes"),
        *map(_cell, (row.kernels_per_layer, row.optimizer_kernels_per_tensor, row.compile_cpu_s)),
    ]


def _over(ours: Optional[Row], row: Row, name: str) -> str:
    """Ours over another's."""
    if ours is None or ours is row or not getattr(row, name):
        return ""
    return f"{getattr(ours, name) / getattr(row, name):.2f}"


def _cell(value: Optional[float]) -> str:
    return "" if value is None else f"{value:.1f}"


def one_or_two(text: str) -> list[int]:
    """One or two numbers of layers, as 4,8."""
    parts = text.split(",")
    if not all(part.isdigit() and int(part) for part in parts) or not len(set(parts)) == len(parts) <= 2:
        raise argparse.ArgumentTypeError(f"'{text}' is not one or two numbers of layers. Use a form such as 32 or 4,8.")
    return sorted(map(int, parts))


def arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    """Of the command line."""
    rivals, default = (*RIVALS, BOUND), (OURS, KEPT, LEAN, PEER, BOUND)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), metavar="NAME",
                        help=f"default all: {', '.join(LAYOUTS)}")
    parser.add_argument("--layers", type=one_or_two, default=[4, 8], metavar="N[,N]",
                        help="default 4,8; multiples of pp")
    parser.add_argument("--rival", nargs="+", choices=rivals, default=list(default), metavar="NAME",
                        help=f"of {', '.join(rivals)}; default {' '.join(default)}")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE",
                        help="put on top of the recipe; MindFormers follows sizes and degrees")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="also as JSON; without FILE only that")
    args = parser.parse_args(argv)
    for name in args.layout:
        stages = LAYOUTS[name].pp
        if any(layers % stages for layers in args.layers):
            parser.error(f"--layers: {name} has {stages} stages of as many layers each. Use multiples of {stages}.")
    return args


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Compile, print, and tell whether every rival did compile.

    Raises:
        MindModelError: if the changes do not fit, or no rank can be compiled here.
    """
    args = arguments(argv)
    depths = sorted({*args.layers, TARGET}) if len(args.layers) > 1 else args.layers
    out, content, faults = sys.stderr if args.json == "-" else sys.stdout, [], []
    recipes = {name: {layers: LAYOUTS[name].recipe(layers, args.set) for layers in depths} for name in args.layout}
    for name in args.layout:
        rows, failures = measure(LAYOUTS[name], recipes[name], args)
        print(show(LAYOUTS[name], recipes[name], rows), file=out, flush=True)
        content += [asdict(row) for row in rows]
        faults += failures
    write_json(args.json, {"rows": content})
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MindModelError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
