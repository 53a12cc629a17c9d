"""Where compiled kernels and graphs are kept between runs: a private folder, verified before MindSpore loads from it.

MindSpore writes the shared objects of fused kernels below MS_COMPILER_CACHE_PATH and loads what it finds there by name.
A process that is killed can leave half of one behind, and two compiling at once can overwrite each other; so the folder
has one owner at a time, and a manifest of checksums that is renewed after each compilation decides what may stay.

A graph that MindSpore's front end has made is kept below the same folder. MindSpore finds it again by its number among
the graphs of the process alone, so only the first one is kept, in a folder named by all that it depends on.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import sys
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Iterator, Optional

from mindmodel.build_cache import MANIFEST, checksums, open_lock, source_digest, temporary_folder, write_manifest
from mindmodel.errors import MindModelError
from mindmodel.files import read_json
from mindmodel.machine import cache_folder, cpu_features
from mindmodel.parallel.environment import place
from mindmodel.recipe.dump import recipe_to_dict
from mindmodel.recipe.schema import Recipe

COMPILE_LOG = "compile.log"
GRAPHS_KEPT = 16
NOT_IN_THE_GRAPH = (
    "name", "checkpoint", "log.every", "data.source", "data.path", "data.tokenizer", "data.tokenizer_vocab_size",
    "data.heldout", "train.steps", "train.stop_at", "train.seed", "train.eval_every", "train.max_hours",
    "train.init_from", "optim.peak_lr", "optim.warmup_steps", "optim.schedule", "optim.final_lr_ratio",
    "runtime.output", "runtime.compile_cache",
)
"""Sections and keys of a recipe that no graph is made of; every other one is taken to matter."""


def _key() -> str:
    """Kernels are built by one version of MindSpore for the machine's own instruction set."""
    return hashlib.sha256(f"{version('mindspore')} {sorted(cpu_features())}".encode()).hexdigest()[:16]


def front_end() -> Path:
    """Where MindSpore looks for a graph of this process."""
    return Path(f"rank_{place().rank}", "graph_cache")


def graph_key(recipe: Recipe, purpose: str, native_library: Optional[Path]) -> str:
    """Names all that the first graph of a process depends on: recipe, purpose, kernels, versions and our sources."""
    plain = recipe_to_dict(recipe)
    for name in NOT_IN_THE_GRAPH:
        section, _, key = name.rpartition(".")
        del (plain[section] if section else plain)[key]
    versions = [sys.version, version("mindspore")]
    text = json.dumps([purpose, plain, str(native_library), versions, source_digest()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class GraphCache:
    """The folder that this process compiles in.

    It is the shared one when no other process has it, else a temporary one that goes with the process. Each rank of a
    job has its own shared one: all of them compile at the same time.
    """

    def __init__(self) -> None:
        self.folder = self._shared() or temporary_folder("graphs")
        os.environ["MS_COMPILER_CACHE_PATH"] = str(self.folder)

    def _shared(self) -> Optional[Path]:
        try:
            rank = f"-rank{place().rank}" if place().num_ranks > 1 else ""
            folder = cache_folder().absolute() / "graphs" / f"{_key()}{rank}"
            lock = open_lock(folder)
        except (OSError, RuntimeError):  # a home that is read-only, or that nobody knows, is no reason to stop
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_unverified(folder)
        except OSError:  # another process has it, or its files cannot be removed
            os.close(lock)
            return None
        self._lock = lock  # held until the process ends
        return folder

    def keep_graph(self, key: str) -> None:
        """The graph that is compiled with `compiling(kept=True)` is the one of this key; old ones are removed."""
        folder, link = self.folder / "front_end" / key, self.folder / front_end()
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        link.symlink_to(folder, target_is_directory=True)
        by_age = sorted(folder.parent.iterdir(), key=lambda path: path.stat().st_mtime)
        for old in by_age[:-GRAPHS_KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    @contextmanager
    def compiling(self, kept: bool = False) -> Iterator[None]:
        """Compile inside: MindSpore's kernel compiler writes a log into the working folder and chats on the terminal.

        The working folder is this one meanwhile, and what is printed goes into compile.log in it. To be called in the
        main thread.

        Args:
            kept: whether the graph is that of `keep_graph`, to be found or kept; for the first graph only.
        """
        os.environ["MS_COMPILER_CACHE_ENABLE"] = str(int(kept and (self.folder / front_end()).exists()))
        sys.stdout.flush()
        sys.stderr.flush()
        before, terminal = os.getcwd(), (os.dup(1), os.dup(2))
        with open(self.folder / COMPILE_LOG, "wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.chdir(self.folder)
        try:
            yield
        finally:
            os.chdir(before)
            # MindSpore's handler would close its kernel compiler for good when the reader of our output goes away
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in enumerate(terminal, 1):
                os.dup2(copy, number)
                os.close(copy)
        with suppress(OSError):  # a full disk: the next process removes what this manifest would have named
            write_manifest(self.folder)


def _remove_unverified(folder: Path) -> None:
    """Remove every file that the manifest does not name with the checksum it has."""
    try:
        known = read_json(folder / MANIFEST, MindModelError)
    except MindModelError:
        known = {}
    for name, checksum in checksums(folder).items():
        if known.get(name) != checksum:
            (folder / name).unlink()
