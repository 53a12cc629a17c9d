"""Shared by the tests of dry runs: the stand-in for CANN, a small package that looks like MindSpore's, and layouts.

A test with a parameter `layout` has that layout compiled: all that the session needs in one go.
"""

from __future__ import annotations

import subprocess

import pytest

from mindmodel.dryrun.compile import compiled
from mindmodel.dryrun.jobs import Job
from mindmodel.dryrun.prove import MOMENT, batches_of, execute, execute_graphs, reference
from mindmodel.dryrun.stubs import PLUGIN
from mindmodel.machine import cpp_compiler
from mindmodel.parallel.mesh import mesh_of
from mindmodel.recipe.load import recipe_from_dict

SEQ_LEN, VOCAB_SIZE, SEQUENCES = 16, 64, 8


def recipe_of(*, layers=2, hidden_size=32, ffn_size=64, family="llama", tied=False, sequences=SEQUENCES, train=(), **parallel):
    """A small recipe; the keywords that are not named here are those of `parallel`."""
    sizes = {"hidden_size": hidden_size, "num_layers": layers, "ffn_size": ffn_size, "vocab_size": VOCAB_SIZE}
    heads = {"num_heads": 8, "num_kv_heads": 4, "head_size": 8}
    sections = {
        "name": "layout",
        "model": {"family": family, "tied_embeddings": tied, **sizes, **heads},
        "data": {"source": "stdlib", "seq_len": SEQ_LEN, "tokenizer": "tokenizer.json"},
        "parallel": {"dp": 1, **parallel},
        "train": {"steps": 3, "tokens_per_step": sequences * SEQ_LEN, "clip_norm": 0.5, **dict(train)},
    }
    return recipe_from_dict(sections, "tests")


UNCLIPPED = {"clip_norm": 0.0}  # a wrong scale of all gradients stays to be seen
BFLOAT16 = {"compute_dtype": "bfloat16"}
FOUR = {"dp": 2, "tp": 2}
SEQUENCE = {"tp": 2, "sequence_parallel": True}

LAYOUTS = {
    "dp4": recipe_of(dp=4),
    "tp4": recipe_of(tp=4),
    "dp2 tp2": recipe_of(**FOUR),
    "dp2 tp2 sequence_parallel": recipe_of(**SEQUENCE, dp=2),
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
    "dp2 tp2 recompute selective": recipe_of(**FOUR, recompute="selective"),
    "dp2 tp2 tied qk_norm": recipe_of(**FOUR, family="qwen3", tied=True),
    "dp2 accumulated": recipe_of(dp=2, micro_batches=2, train=UNCLIPPED),
    "everything": recipe_of(
        **SEQUENCE, dp=2, pp=2, shard_optimizer="states", recompute="full", micro_batches=4
    ),
}

CODE = r"""
#include <stdio.h>
extern int aclInit(const char *);
extern int unrelated(void);
const char *names[] = {"aclnnAdd", "aclrtMalloc", "aclnnAdd failed",
                       "libopapi.so", "/lib64/libhccl.so", "libsystem.so.1"};
int hcclOwn(void) { return puts(names[0]) + aclInit(names[1]) + unrelated(); }
"""


@pytest.fixture(scope="session")
def standin(cache_of_the_tests):
    """Folder of the stand-in for CANN, built for this session."""
    from mindmodel.dryrun.standin import find_or_build

    if cpp_compiler() is None:
        pytest.skip("the stand-in for CANN needs a compiler: apt-get install g++")
    return find_or_build()


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
