"""Plain processes that save one checkpoint after another, to be killed: `python writers.py FOLDER RANKS FIRST_STEP`.

Each rank prints a line of its own when it has begun, and the first one `saved N` when save_checkpoint says so.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np

from mindmodel.checkpoint import shares
from mindmodel.checkpoint.part import Crew
from mindmodel.checkpoint.save import save_checkpoint
from mindmodel.parallel.mesh import Mesh

FACTS = {"samples": 0, "tokens": 0}
FACTS |= {"recipe": {}, "versions": {}, "random": {}, "layout": {}, "keep": 3, "keep_every": 0}


def content(step: int) -> dict[str, np.ndarray]:
    """Weights of a step: each tells which it is."""
    return {f"w{number}": np.full((64, 512), 1000 * step + number, np.float32) for number in range(8)}


def say(line: str) -> None:
    """In one piece, though others write to the same pipe."""
    os.write(1, f"{line}\n".encode())


def work(folder: Path, rank: int, count: int, step: int, attempt: str) -> None:
    say(f"rank {rank} {os.getpid()}")
    crew = Crew(rank=rank, mesh=Mesh(dp=count), attempt=attempt, patience_s=20, max_file_bytes=2**18)
    while True:
        save_checkpoint(folder, step=step, weights=content(step), optimizer={}, crew=crew, **FACTS)
        if rank == 0:
            say(f"saved {step}")
        step += 1


if __name__ == "__main__":
    path, ranks, first = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    shares.GRAIN_BYTES = 4096
    attempt = f"{os.getpid()} {time.time_ns()}"
    rank = next((rank for rank in range(1, ranks) if os.fork() == 0), 0)
    work(path, rank, ranks, first, attempt)
