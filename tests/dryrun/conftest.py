"""Shared by the tests of dry runs: the stand-in for CANN, a small package that looks like MindSpore's, and layouts.

A test with a parameter `layout` has that layout compiled: all that the session needs in one go.
"""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
from functools import cached_property

import pytest

from dry_runs import recipe_for
from mindmodel.dryrun.compile import compiled
from mindmodel.dryrun.jobs import Job
from mindmodel.dryrun.prove import MOMENT, batches_of, compare, execute, jobs_of, reference
from mindmodel.dryrun.stubs import PLUGIN
from mindmodel.machine import cpp_compiler
from mindmodel.parallel.mesh import mesh_of
from mindmodel.recipe.schema import Recipe

SEQ_LEN, VOCAB_SIZE, SEQUENCES = 16, 64, 8


def recipe_of(
    *, layers=2, hidden_size=32, ffn_size=64, kv_heads=4, family="llama", tied=False, sequences=SEQUENCES, train=(),
    **parallel,
):
    """A small recipe; the keywords that are not named here are those of `parallel`."""
    sizes = {"hidden_size": hidden_size, "num_layers": layers, "ffn_size": ffn_size, "vocab_size": VOCAB_SIZE}
    heads = {"num_heads": 8, "num_kv_heads": kv_heads, "head_size": 8}
    model = {"family": family, "tied_embeddings": tied, **sizes, **heads}
    train = {"steps": 3, "clip_norm": 0.5, **dict(train)}
    return recipe_for(model, seq_len=SEQ_LEN, sequences=sequences, train=train, **{"dp": 1, **parallel})


UNCLIPPED = {"clip_norm": 0.0}  # a wrong scale of all gradients stays to be seen
BFLOAT16 = {"compute_dtype": "bfloat16"}
FOUR = {"dp": 2, "tp": 2}
SEQUENCE = {"tp": 2, "sequence_parallel": True}
KEPT = {"gathered_tokens": "kept"}
IN_COMPUTE = {"shard_optimizer": "states", "reduce_dtype": "compute"}

LAYOUTS = {
    "dp4": recipe_of(dp=4),
    "tp4": recipe_of(tp=4),
    "dp2 tp2": recipe_of(**FOUR),
    "dp2 tp2 sequence_parallel": recipe_of(**SEQUENCE, dp=2),
    "dp2 tp2 tokens kept": recipe_of(**SEQUENCE, **KEPT, dp=2, shard_optimizer="states", recompute="selective"),
    "pp2 tp2 tokens kept": recipe_of(**SEQUENCE, **KEPT, pp=2, micro_batches=2, train={"z_loss": 0.01}),
    "cp2": recipe_of(cp=2, sequences=1),
    "dp2 cp2": recipe_of(dp=2, cp=2, sequences=2),
    "cp2 tp2 sequence_parallel": recipe_of(**SEQUENCE, cp=2, sequences=1),
    "pp2": recipe_of(pp=2, micro_batches=4, train=UNCLIPPED),
    "pp2 uneven": recipe_of(layers=3, pp=2, stages=[1, 2], micro_batches=2),
    "pp2 tied": recipe_of(family="qwen3", tied=True, pp=2, micro_batches=2),
    "pp2 interleaved": recipe_of(layers=4, pp=2, interleave=2, micro_batches=4),
    "pp4": recipe_of(layers=4, pp=4, micro_batches=4),
    "dp4 states": recipe_of(dp=4, shard_optimizer="states", train=UNCLIPPED),
    "dp2 gradients": recipe_of(dp=2, shard_optimizer="gradients", micro_batches=2),
    "dp4 parameters": recipe_of(dp=4, shard_optimizer="parameters"),
    "dp2 tp2 recompute": recipe_of(**FOUR, recompute="full"),
    "tp2 recompute selective": recipe_of(tp=2, recompute="selective"),
    "dp2 tp2 summed in compute": recipe_of(
        **SEQUENCE, dp=2, **IN_COMPUTE, recompute="selective", train={"z_loss": 0.01}
    ),
    "dp4 tied summed in compute": recipe_of(family="qwen3", tied=True, dp=4, **IN_COMPUTE),
    "dp2 tp2 tied qk_norm": recipe_of(**FOUR, family="qwen3", tied=True),
    "dp2 accumulated": recipe_of(dp=2, micro_batches=2, train={**UNCLIPPED, "z_loss": 0.01}),
    "tp4 copied heads": recipe_of(tp=4, kv_heads=1, family="qwen3", recompute="selective", train=UNCLIPPED),
    "dp2 tp4 copied heads states": recipe_of(dp=2, tp=4, kv_heads=2, sequence_parallel=True, shard_optimizer="states"),
    "pp2 tp2 copied heads": recipe_of(pp=2, tp=2, kv_heads=1, micro_batches=2),
    "cp2 tp2 copied heads": recipe_of(cp=2, tp=2, kv_heads=1, sequences=1),
    "everything": recipe_of(**SEQUENCE, dp=2, pp=2, shard_optimizer="states", recompute="full", micro_batches=4),
}
"""Executed by all ranks and held against one device."""

DEEP = {"layers": 5, "hidden_size": 48, "ffn_size": 96}
WIDE = {"layers": 3, "hidden_size": 64, "ffn_size": 160}
TIED = {"family": "qwen3", "tied": True}

SIZES: dict[str, Recipe] = {
    "wide gradients": recipe_of(
        **WIDE, **TIED, dp=2, tp=2, shard_optimizer="gradients", micro_batches=4, train={"z_loss": 1e-4}
    ),
    "deep everything": recipe_of(
        **DEEP, **SEQUENCE, cp=2, pp=2, stages=[3, 2], shard_optimizer="states", recompute="full", recompute_layers=1,
        micro_batches=4, sequences=4, train=BFLOAT16,
    ),
    "wide parameters": recipe_of(
        **WIDE, **SEQUENCE, dp=2, shard_optimizer="parameters", recompute="selective", micro_batches=2, train=BFLOAT16
    ),
    "deep tied": recipe_of(**DEEP, **TIED, dp=4, shard_optimizer="parameters", recompute="full", train=BFLOAT16),
    "wide copied heads": recipe_of(
        **WIDE, dp=2, tp=4, kv_heads=2, micro_batches=2, shard_optimizer="gradients", recompute="full", train=BFLOAT16
    ),
    "deep stages": recipe_of(**DEEP, dp=2, pp=4, micro_batches=4),
    "wide summed in compute": recipe_of(
        **WIDE, **SEQUENCE, dp=2, **IN_COMPUTE, recompute="full", recompute_layers=2, train=BFLOAT16
    ),
    "deep tied summed in compute": recipe_of(
        **DEEP, **TIED, **IN_COMPUTE, cp=2, tp=2, sequences=1, recompute="selective", train=BFLOAT16
    ),
    "wide tokens kept": recipe_of(
        **WIDE, **SEQUENCE, **KEPT, dp=2, **IN_COMPUTE, recompute="full", recompute_layers=1, train=BFLOAT16
    ),
    "wide tied": recipe_of(**WIDE, **TIED, dp=2, tp=2, shard_optimizer="parameters", micro_batches=2, train=BFLOAT16),
}
"""Compiled for the first and the last rank, to see what they say to the others."""


class Partition:
    """A layout, compiled.

    Attributes:
        ranks, one: what the compiler made of each rank, and of one device.
        before: whole fresh weights by name.
    """

    def __init__(self, recipe, ranks, one, executions):
        self.recipe, self.ranks, self.mesh = recipe, ranks, mesh_of(recipe.parallel)
        self.one, self._executions = one, executions

    @cached_property
    def graphs(self):
        return [rank.graph() for rank in self.ranks]

    @cached_property
    def slices(self):
        return [rank.slices() for rank in self.ranks]

    @cached_property
    def before(self):
        arrays = self.one.slices()
        return {name: array for name, array in arrays.items() if f"{MOMENT}{name}" in arrays}

    @property
    def alone(self):
        """What one device computes; once for all layouts that are compared with it."""
        name = self.one.job.name
        if name not in self._executions:
            self._executions[name] = execute([self.one.graph()], [self.one.slices()], batches_of(self.recipe))
        return self._executions[name]

    @cached_property
    def execution(self):
        return execute(self.graphs, self.slices, batches_of(self.recipe))

    def proof(self, graphs=None, slices=None):
        """Of these graphs and slices; as compiled by default."""
        many = self.execution
        if graphs or slices:
            many = execute(graphs or self.graphs, slices or self.slices, batches_of(self.recipe))
        return compare(self.recipe, self.alone, many, self.before)


def pytest_generate_tests(metafunc):
    """A test that does not say which layouts it is about is about all that are executed."""
    named = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "layout" in metafunc.fixturenames and not any("layout" in names.split(", ") for names in named):
        metafunc.parametrize("layout", LAYOUTS)


@pytest.fixture(scope="session")
def partitions(standin, request):
    """The layouts that the tests of this session need: MindSpore is loaded once, then each rank is a fork."""
    users = [item for item in request.session.items if "partitions" in item.fixturenames and hasattr(item, "callspec")]
    needed = list(dict.fromkeys(item.callspec.params["layout"] for item in users if "layout" in item.callspec.params))
    evaluated = {item.callspec.params["layout"] for item in users if "forward_passes" in item.fixturenames}
    references = {name: reference(LAYOUTS[name]) for name in needed if name in LAYOUTS}
    recipes = enumerate(dict.fromkeys(references.values()))
    alone = {recipe: Job(name=f"one-{number}", recipe=recipe, rank=0, level=0) for number, recipe in recipes}
    ranks = {name: _jobs(name, f"layout-{number}-", name in evaluated) for number, name in enumerate(needed)}
    with compiled([*alone.values(), *itertools.chain(*ranks.values())], 2) as results:
        executions = {}
        yield {
            name: Partition(
                jobs[0].recipe,
                [results[job.name] for job in jobs],
                results[alone[references[name]].name] if name in LAYOUTS else None,
                executions,
            )
            for name, jobs in ranks.items()
        }


def _jobs(name, prefix, forward):
    if name in LAYOUTS:
        return [dataclasses.replace(job, forward=forward) for job in jobs_of(LAYOUTS[name], prefix)]
    jobs = jobs_of(SIZES[name], prefix)
    return [jobs[0], *(jobs[-1:] if SIZES[name].parallel.pp > 1 else [])]


@pytest.fixture(scope="session")
def layouts() -> dict[str, Recipe]:
    """All that are executed, by name; none is compiled for it."""
    return LAYOUTS


@pytest.fixture
def partition(partitions, layout):
    """The test's layout."""
    return partitions[layout]


@pytest.fixture
def forward_passes(partition):
    """Of its ranks, with which a run evaluates; they are compiled for the tests that ask for them."""
    return [rank.forward_pass() for rank in partition.ranks]


CODE = r"""
#include <stdio.h>
extern int aclInit(const char *);
extern int unrelated(void);
const char *names[] = {"aclnnAdd", "aclrtMalloc", "aclnnAdd failed",
                       "libopapi.so", "/lib64/libhccl.so", "libsystem.so.1"};
int hcclOwn(void) { return puts(names[0]) + aclInit(names[1]) + unrelated(); }
"""


@pytest.fixture(scope="session")
def plugin_library(tmp_path_factory):
    """A library that lacks a function of CANN, needs a library of it, and names others."""
    compiler, folder = cpp_compiler(), tmp_path_factory.mktemp("plugin")
    if compiler is None:
        pytest.skip("needs a compiler: apt-get install g++")
    command = [compiler, "-x", "c", "-", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", folder / "libascendcl.so"], input="int other;", text=True, check=True)
    linked = ["-Wl,--no-as-needed", f"-L{folder}", "-lascendcl", "-lc"]
    subprocess.run([*command, *linked, "-o", folder / "plugin.so"], input=CODE, text=True, check=True)
    return (folder / "plugin.so").read_bytes()


@pytest.fixture
def package(tmp_path):
    """A folder as MindSpore's, with empty files for the plugin's libraries."""
    folder = tmp_path / "site-packages" / "mindspore"
    (folder / "lib" / "plugin").mkdir(parents=True)
    (folder / "version.py").write_text("__version__ = '2.9.0'\n")
    for name in PLUGIN:
        (folder / "lib" / "plugin" / name).write_bytes(b"")
    return folder


@pytest.fixture
def small_package(package, plugin_library):
    """The same with libraries that can be read."""
    for name in PLUGIN:
        (package / "lib" / "plugin" / name).write_bytes(plugin_library)
    return package
