"""Where the time of a training step goes on this CPU, and what memory it holds at its peak.

examples:
  mindmodel debug profile recipes/cpu/tiny.yaml
  mindmodel debug profile recipes/cpu/tiny.yaml train.compute_dtype=bfloat16 --steps 20 --out runs/tiny/profile-bf16
  mindmodel debug profile recipes/llama/8b.yaml --single --shrink

The step is the one that training compiles, on the run's own data. Steps with MindSpore's profiler and steps without
follow one another. It prints the time of phases, parts of the model, operators and matrix products, and writes
FOLDER/profile.json, FOLDER/profile.html and FOLDER/trace.json, which chrome://tracing and ui.perfetto.dev open.
Nothing of the run is changed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from mindmodel.checkpoint.run_folder import RunFolder
from mindmodel.cli.arguments import add_recipe_arguments, at_least, load_as_asked
from mindmodel.debug.graph.compile import compiled_anew
from mindmodel.debug.in_memory import in_memory
from mindmodel.debug.profile.chrome_trace import chrome_trace
from mindmodel.debug.profile.memory import MemoryUse
from mindmodel.debug.profile.page import page_of
from mindmodel.debug.profile.places import PHASES
from mindmodel.debug.profile.recording import Recording
from mindmodel.debug.profile.step_profile import StepProfile, profile_of
from mindmodel.errors import LayoutError
from mindmodel.files import write_texts_safely
from mindmodel.recipe.schema import Recipe
from mindmodel.terminal import Terminal, data_size
from mindmodel.train.run import OpenedRun, Position, for_this_machine, open_run

SHOWN = 12
"""Rows of a table on the terminal; profile.json has all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this subcommand."""
    add_recipe_arguments(parser)
    parser.add_argument("--device", choices=("cpu", "ascend"), default="cpu", help="default: cpu")
    parser.add_argument("--steps", type=at_least(1), default=10, metavar="N", help="that are profiled; default 10")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where it is written; default: profile/ of the run")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    if args.device == "ascend":
        _refuse_ascend()
    terminal = Terminal(sys.stderr if args.json else None)
    recipe = compiled_anew(for_this_machine(load_as_asked(args, terminal)))
    with _corpus_folder(recipe) as folder:
        opened = open_run(recipe, folder, Position(checkpoint=None, changes=()), terminal)
        recording, profile = _profiled(opened, args.steps, terminal)
    written = _write(recording, profile, args.out or RunFolder(Path(recipe.output)).profile)
    if args.json:
        print(json.dumps({**profile.to_json(), "files": written}))
    else:
        terminal.say("\n".join([*_lines(profile), *(f"wrote       {name}" for name in written)]))
    return 0


def _refuse_ascend() -> None:
    """A simulated device computes nothing, so nothing of it can be timed."""
    raise LayoutError(
        "debug profile: measures on the CPU only. The dry run compiles for Ascend and computes nothing, so it knows "
        "memory, collectives and kernels (`mindmodel dryrun`) and no times. On a real NPU take MindSpore's own: "
        "mindspore.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.NPU]) around the steps of a "
        "run; its trace_view.json opens in ui.perfetto.dev as well."
    )


@contextmanager
def _corpus_folder(recipe: Recipe) -> Iterator[RunFolder]:
    """The run's folder where that holds its corpus, else a temporary one in which it is made."""
    folder = RunFolder(Path(recipe.output))
    if recipe.data.path is None and folder.data.exists():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="mindmodel-corpus-") as name:
        yield RunFolder(Path(name))


def _profiled(opened: OpenedRun, num_steps: int, terminal: Terminal) -> tuple[Recording, StepProfile]:
    stepping = in_memory(opened, terminal)
    from mindmodel.debug.profile.recorder import record_steps

    with terminal.working("compiling and profiling the training step"):
        recording = record_steps(stepping, num_steps)
    kernels, threads = stepping.runtime.kernels, stepping.runtime.threads
    return recording, profile_of(recording, recipe=opened.recipe.name, kernels=kernels, threads=threads)


def _write(recording: Recording, profile: StepProfile, folder: Path) -> list[str]:
    """The files; gives their paths."""
    title = f"A training step of {profile.recipe} on the CPU"
    return write_texts_safely(folder, {
        "profile.json": json.dumps(profile.to_json(), indent=1),
        "profile.html": page_of(title, profile),
        "trace.json": json.dumps(chrome_trace(recording, title)),
    })


def _lines(profile: StepProfile) -> Iterator[str]:
    """The whole report."""
    yield (f"step        {_ms(profile.step_s)} ms, mean of {profile.num_steps} ({_ms(profile.fastest_s)} to "
           f"{_ms(profile.slowest_s)}); median {_ms(profile.median_s)}, without the profiler {_ms(profile.plain_s)}: "
           f"{100 * profile.overhead:+.1f}%")
    fused = f", {profile.num_fused} of them fused by MindSpore from several operators" if profile.num_fused else ""
    yield f"kernels     {profile.num_kernels}{fused}; {profile.kernels}, {profile.threads} threads"
    yield "phases      ms of a step, and share; they add up to it"
    for phase, seconds in profile.phases.items():
        yield f"  {phase:<24}{_ms(seconds):>10}{100 * seconds / profile.step_s:>7.1f}%"
    yield f"parts       {'ms in':<14}{''.join(f'{phase:>11}' for phase in PHASES)}"
    for part, phases in profile.parts.items():
        yield f"  {part:<24}{''.join(f'{_ms(phases[phase]):>11}' for phase in PHASES)}"
    yield "operators   kernels, ms, share of the step"
    for operator, (count, seconds) in list(profile.operators.items())[:SHOWN]:
        yield f"  {operator[:48]:<48}{count:>6}{_ms(seconds):>10}{100 * seconds / profile.step_s:>7.1f}%"
    yield from _product_lines(profile)
    yield from _memory_lines(profile.memory)


def _product_lines(profile: StepProfile) -> Iterator[str]:
    peak = f"{profile.peak_flops / 1e9:.0f}: {profile.peak_name}"
    yield f"products    kernels, ms, GFLOP/s of matrix products; the peak is {peak}"
    for row in profile.products[:SHOWN]:
        what = f"{row.operator} of {row.place}, {row.phase}"
        yield f"  {what:<62}{row.count:>4}{_ms(row.seconds):>10}{row.flop_s / 1e9:>9.1f}  {row.shapes}"


def _memory_lines(memory: MemoryUse) -> Iterator[str]:
    parameters = ", ".join(f"{name} {data_size(number)}" for name, number in memory.parameter_bytes.items())
    place = f"kernel {memory.peak_index + 1} of {len(memory.curve)}: {memory.peak_kernel}"
    yield f"memory      {data_size(memory.peak_bytes)} of tensors at the peak, in {place}"
    yield f"  of it inputs and constants {data_size(memory.fixed_bytes)}; beside it {parameters}"
    yield f"  the process held {data_size(memory.process_bytes)} at most, with compilation"
    if memory.unexplained_bytes:
        yield f"  {data_size(memory.unexplained_bytes)} of the peak belong to no tensor of the graph"
    for row in memory.held[:SHOWN]:
        what = f"{row.operator} of {row.place}, {row.phase}"
        yield f"  {data_size(row.num_bytes):>9}  {row.count:>3} x {row.type:<24} {what}; last read by {row.last_read}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"
