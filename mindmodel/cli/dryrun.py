"""Compile the training step for ranks of N simulated Ascend devices: memory, collectives, kernels; no chip is needed.

example:  mindmodel dryrun recipes/llama/7b.yaml --devices 64 parallel.tp=8
          mindmodel dryrun recipes/llama/7b.yaml --devices 64 --chip 910B2 --rank 9 --json
          mindmodel dryrun recipes/llama/7b.yaml --devices 64 --rank 0 --live
          mindmodel dryrun recipes/llama/7b.yaml --devices 8 --prove

exit code: 0 it fits, or the proof holds; 1 it does not; 2 the layout cannot be compiled.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Iterator, Optional, Sequence

from mindmodel.checkpoint.run_folder import LIVE_NAME, RunFolder
from mindmodel.cli.arguments import add_overrides, at_least
from mindmodel.cli.recipe import filling, with_vocabulary
from mindmodel.dryrun.compile import Progress
from mindmodel.dryrun.live_page import page_of
from mindmodel.dryrun.live_text import live_lines
from mindmodel.dryrun.prove import NUM_STEPS, TOLERANCE, Proof, jobs_of, prove, reference
from mindmodel.dryrun.report import RankReport
from mindmodel.dryrun.run import chosen_ranks, dry_run, jobs_at_once
from mindmodel.files import write_text_safely
from mindmodel.fleet.chips import DEFAULT_CHIP, Chip, find_chip
from mindmodel.fleet.layouts import fitting_layouts
from mindmodel.fleet.memory import KINDS
from mindmodel.fleet.rank_sizes import RankSizes
from mindmodel.machine import memory, usable_cores
from mindmodel.parallel.mesh import mesh_of
from mindmodel.recipe.estimate import parameters
from mindmodel.recipe.load import load_with_changes
from mindmodel.recipe.rules import resolve_degrees
from mindmodel.recipe.schema import Recipe
from mindmodel.recipe.shrink import fewer_devices, shrink
from mindmodel.terminal import Terminal, data_size, quantity

MAX_PROVEN_DEVICES = 16
HCCL_BUFFER_BYTES = 2 * 200 << 20
"""That HCCL takes for each group of ranks by default, to send and to receive (HCCL_BUFFSIZE, 200 MB each)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, such as recipes/llama/7b.yaml")
    add_overrides(parser, "put on top, such as parallel.tp=8")
    parser.add_argument("--devices", type=at_least(1), metavar="N", required=True, help="devices of the whole job")
    parser.add_argument("--rank", type=at_least(0), action="append", metavar="K",
                        help="compile this rank, may be repeated; default one of the first, middle and last stage")
    parser.add_argument("--chip", default=DEFAULT_CHIP, help=f"whose memory it must fit; default {DEFAULT_CHIP}")
    parser.add_argument("--jobs", type=at_least(1), metavar="N", help="ranks compiled at a time; default all cores")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--live", action="store_true",
                      help=f"also what is alive at the peak, and a page with the whole step, {LIVE_NAME} of the run")
    ways.add_argument("--prove", action="store_true", help="execute all ranks of a small model beside one device")


def run(args: argparse.Namespace) -> int:
    terminal = Terminal(sys.stderr if args.json else None)
    chip = find_chip(args.chip)
    recipe, _ = load_with_changes(args.recipe, args.overrides)
    recipe = resolve_degrees(recipe, args.devices)
    if args.prove:
        return _prove(with_vocabulary(_small(recipe, terminal)), args, terminal)
    recipe = with_vocabulary(recipe)
    at_once = jobs_at_once(recipe, args.jobs or usable_cores(), memory())
    ranks = chosen_ranks(mesh_of(recipe.parallel), args.rank)
    if not args.json:
        terminal.say("\n".join(_layout_lines(recipe, ranks)))
    reports = dry_run(recipe, ranks, at_once, _progress(terminal, len(ranks)))
    fits = all(report.peak_bytes <= chip.usable_bytes for report in reports)
    page = _write_page(recipe, reports) if args.live else None
    if args.json:
        print(json.dumps(_as_json(reports, fits, chip, page)))
    else:
        terminal.say("\n".join(_report_lines(recipe, reports, chip)))
        if page:
            terminal.say("\n".join(_live_lines(reports, page)))
        terminal.say("\n".join(_verdict_lines(recipe, fits, chip)))
    return 0 if fits else 1


def _progress(terminal: Terminal, total: int) -> Progress:
    """A bar that moves as each rank is compiled."""
    terminal.progress(0, total, "ranks compiled")

    def show(done: int, name: str) -> None:
        terminal.progress(done, total, f"ranks compiled, last {name}")

    return show


def _as_json(reports: Sequence[RankReport], fits: bool, chip: Chip, page: Optional[Path]) -> dict:
    """With what is alive in each rank, where a page of it was written."""
    return {
        "fits": fits,
        "usable_bytes": chip.usable_bytes,
        "compile_cpu_s": sum(report.cpu_s for report in reports),
        "ranks": [{**report.to_json(), **({"live": report.live.to_json()} if page else {})} for report in reports],
        **({"page": str(page)} if page else {}),
    }


def _write_page(recipe: Recipe, reports: Sequence[RankReport]) -> Path:
    """The page of what is alive, in the run's folder."""
    title, layout = f"Live memory of {recipe.name}", ", ".join(_layout_texts(recipe))
    text = page_of(title, layout, {report.rank: report.live for report in reports})
    path = RunFolder(Path(recipe.output)).live_memory
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_safely(path, text)
    return path


def _layout_lines(recipe: Recipe, ranks: Sequence[int]) -> Iterator[str]:
    """The layout and what follows from it."""
    degrees, options, batch = _layout_texts(recipe)
    yield f"layout      {degrees}"
    yield f"            {options}"
    yield f"batch       {batch}"
    assert recipe.model.vocab_size is not None
    yield f"parameters  {quantity(parameters(recipe.model, recipe.model.vocab_size).total)} in all"
    for rank in ranks:
        yield f"            {quantity(RankSizes(recipe, rank).num_own)} that rank {rank} updates"


def _layout_texts(recipe: Recipe) -> tuple[str, str, str]:
    """Degrees, options and batch."""
    parallel = recipe.parallel
    sequences = recipe.sequences_per_rank
    degrees = f"{_degrees(recipe)}, {mesh_of(parallel).num_devices} devices"
    options = ["sequence_parallel"] if parallel.sequence_parallel else []
    options += ["gathered_tokens=kept"] if parallel.gathered_tokens == "kept" else []
    options += [f"shard_optimizer={parallel.shard_optimizer}", f"recompute={parallel.recompute}"]
    share = f"{parallel.micro_batches} micro-batches of {sequences // parallel.micro_batches}"
    batch = f"{recipe.sequences_per_step} sequences a step, {sequences} a rank, in {share}{filling(recipe)}"
    return degrees, ", ".join(options), batch


def _degrees(recipe: Recipe) -> str:
    return " ".join(f"{name}={degree}" for name, degree in recipe.parallel.degrees.items())


def _gib(number: float) -> str:
    return f"{number / 2**30:.2f}"


def _report_lines(recipe: Recipe, reports: Sequence[RankReport], chip: Chip) -> Iterator[str]:
    """Memory of all ranks, then each one's collectives and kernels."""
    yield f"memory      GiB at the peak of a step; a {chip.name} has {_gib(chip.usable_bytes)} that a job can use"
    yield "  " + "".join(f"{title:>12}" for title in ("rank", "stage", *KINDS, "peak", "free"))
    for report in reports:
        numbers = [*(report.by_kind[kind] for kind in KINDS), report.peak_bytes, chip.usable_bytes - report.peak_bytes]
        yield f"  {report.rank:>12}{report.stage:>12}" + "".join(f"{_gib(number):>12}" for number in numbers)
    yield from _unseen_lines(reports)
    for report in reports:
        yield from _collective_lines(report, recipe.runtime.devices_per_node)
        yield from _kernel_lines(report)
    seconds, host = sum(report.cpu_s for report in reports), max(report.host_bytes for report in reports)
    yield f"compiled    in {seconds:.0f} CPU-seconds and {data_size(host)} of host memory a rank"


def _unseen_lines(reports: Sequence[RankReport]) -> Iterator[str]:
    """What the chip needs beside: a dry run has no kernels and no communication."""
    groups = max(len({collective.ranks for collective in report.collectives}) for report in reports)
    buffers = f"{_gib(groups * HCCL_BUFFER_BYTES)} GiB of HCCL's buffers, for {groups} groups of ranks at its default"
    yield f"  not seen: workspaces of kernels, and up to {buffers}"


def _collective_lines(report: RankReport, devices_per_node: int) -> Iterator[str]:
    links, network = report.wire_bytes(devices_per_node)
    sent = f"{_gib(links)} GiB over the node's links, {_gib(network)} GiB over the network"
    yield f"rank {report.rank}: sends {sent} in a step"
    for total in report.by_axes():
        each = f"{total.count:>6} x {_gib(total.bytes / total.count):>7} GiB"
        yield f"  {total.kind:<14}{'*'.join(total.axes):<12}{each}  {total.dtype}"


def _kernel_lines(report: RankReport) -> Iterator[str]:
    total = sum(report.kernels.values())
    yield f"rank {report.rank}: {total} kernels in a step, {report.layer_kernels} of them in layers"
    old = ", ".join(f"{name} {report.kernels[name]}" for name in report.old_kernels)
    yield f"  of the old kind aclop: {old or 'none'}"


def _live_lines(reports: Sequence[RankReport], page: Path) -> Iterator[str]:
    for report in reports:
        yield from live_lines(report.rank, report.live)
    yield f"wrote       {page}"


def _verdict_lines(recipe: Recipe, fits: bool, chip: Chip) -> Iterator[str]:
    if fits:
        yield "it fits"
        return
    num_devices = mesh_of(recipe.parallel).num_devices
    near = [layout for layout in fitting_layouts(recipe, num_devices, chip.usable_bytes) if layout.changes]
    if not near:
        yield f"it does not fit a {chip.name}, nor does any layout near it of {num_devices} devices: use more"
        return
    yield f"it does not fit a {chip.name}. By a closed form of memory these would:"
    for layout in near:
        yield f"  {' '.join(layout.changes)}: {_gib(layout.peak.total)} GiB"


def _small(recipe: Recipe, terminal: Terminal) -> Recipe:
    """What is proven in place of a recipe: few devices, small sizes, float32."""
    fewer, changes = fewer_devices(recipe, MAX_PROVEN_DEVICES)
    small, _ = shrink(fewer)
    if changes:
        terminal.say("\n".join(["on fewer devices:", *(f"  {change}" for change in changes)]))
    return small


def _prove(recipe: Recipe, args: argparse.Namespace, terminal: Terminal) -> int:
    """Compile and execute all ranks of a small recipe."""
    at_once = jobs_at_once(recipe, args.jobs or usable_cores(), memory())
    total = len(jobs_of(reference(recipe), "")) + len(jobs_of(recipe, ""))
    proof = prove(recipe, at_once, _progress(terminal, total))
    if args.json:
        print(json.dumps(_proof_json(proof)))
    else:
        terminal.say("\n".join(_proof_lines(proof)))
    return 0 if proof.holds else 1


def _proof_json(proof: Proof) -> dict:
    """JSON has no infinity: a difference from what is not a number is null."""
    numbers = {name: getattr(proof, name) for name in ("loss", "gradient", "weight", "copies")}
    differences = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
    return {"holds": proof.holds, **differences, "worst": proof.worst[0]}


def _proof_lines(proof: Proof) -> Iterator[str]:
    """How far all ranks together are from one device."""
    yield f"executed    {_degrees(proof.recipe)}, {NUM_STEPS} steps in float64, against one device"
    yield f"loss        {proof.loss:.1e}, and gradient norm"
    yield f"gradients   {proof.gradient:.1e}"
    yield f"weights     {proof.weight:.1e}"
    yield f"copies      {proof.copies:.1e}, between ranks that hold the same"
    if proof.holds:
        yield f"proven: all relative differences are below {TOLERANCE:.0e}"
    else:
        yield f"refuted: {proof.worst[0]} differs by {proof.worst[1]:.1e}"
