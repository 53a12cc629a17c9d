"""Ranks of a mesh that save and load together in one process, a thread each; and layouts drawn at random."""

from __future__ import annotations

import dataclasses
import math
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable

import numpy as np

from mindmodel.checkpoint.blocks import Block, whole
from mindmodel.checkpoint.part import Crew
from mindmodel.checkpoint.save import save_checkpoint
from mindmodel.checkpoint.shares import Placement, held_block
from mindmodel.parallel.mesh import Mesh
from mindmodel.tensor_file import DTYPE_OF_NAME

FACTS = {"samples": 8, "tokens": 512, "recipe": {}, "versions": {}, "random": {}, "keep": 9, "keep_every": 0}
DTYPES = ("float32", "float16", "bfloat16", "int64", "int8")


def random_mesh(draw: random.Random, most: int = 12) -> Mesh:
    """Degrees that may be odd."""
    while True:
        mesh = Mesh(**{axis: draw.choice((1, 1, 2, 2, 3)) for axis in ("pp", "dp", "cp", "tp")})
        if mesh.num_devices <= most:
            return mesh


def random_shapes(draw: random.Random) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shapes that 1, 2, 3 and 6 divide, and some that nothing does; scalars and empty ones among them."""
    shapes = [(), (1,), (7,), (0, 5), (36,), (36, 5), (12, 36), (5, 36, 3)]
    return {f"t{number}": (shape, draw.choice(DTYPES)) for number, shape in enumerate(shapes)}


def random_placements(draw: random.Random, mesh: Mesh, shapes) -> dict[str, Placement]:
    """Every dim over axes that divide it, no axis twice; on a stage, or on all."""
    placements = {}
    for name, (shape, dtype) in shapes.items():
        free, axes = ["dp", "cp", "tp"], []
        for size in shape:
            draw.shuffle(free)
            chosen = tuple(free[: draw.choice((0, 1, 1, 2))])
            if size % math.prod(getattr(mesh, axis) for axis in chosen):
                chosen = ()
            axes.append(None if not chosen else chosen[0] if len(chosen) == 1 else chosen)
            free = [axis for axis in free if axis not in chosen]
        stage = draw.choice((None, draw.randrange(mesh.pp)))
        placements[name] = Placement(shape=shape, dtype=dtype, axes=tuple(axes), stage=stage)
    return placements


def random_arrays(shapes, seed: int = 0) -> dict[str, np.ndarray]:
    """Random bits."""
    draw = np.random.default_rng(seed)
    return {
        name: np.frombuffer(draw.bytes(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)
        for name, (shape, dtype) in ((name, (shape, DTYPE_OF_NAME[code])) for name, (shape, code) in shapes.items())
    }


def random_blocks(draw: random.Random, shape) -> list[Block]:
    """Of a tensor that was cut at random again and again."""
    blocks = [whole(shape)]
    for _ in range(draw.randrange(8)):
        one = blocks.pop(draw.randrange(len(blocks)))
        dim = draw.randrange(len(shape))
        size = draw.randrange(one.shape[dim] + 1)
        for start, length in ((0, size), (size, one.shape[dim] - size)):
            offset, extent = list(one.offset), list(one.shape)
            offset[dim] += start
            extent[dim] = length
            blocks.append(Block(offset=tuple(offset), shape=tuple(extent)))
        blocks = [one for one in blocks if 0 not in one.shape]
    return blocks


def held(arrays, placements, mesh: Mesh) -> Callable[[int], dict[str, np.ndarray]]:
    """What each rank holds of whole tensors."""

    def of_rank(rank: int) -> dict[str, np.ndarray]:
        blocks = {name: held_block(placement, mesh, rank) for name, placement in placements.items()}
        return {name: arrays[name][block.place] for name, block in blocks.items() if block is not None}

    return of_rank


def save_alone(folder: Path, step: int, weights, **changes) -> Path:
    """Save from one rank that holds all."""
    what = {**FACTS, "step": step, "weights": weights, "optimizer": {}, "layout": {}}
    return save_checkpoint(folder, **{**what, **changes})


def save_by_all(folder: Path, step: int, holding: Callable[[int], dict], placements, mesh: Mesh, **crew) -> Path:
    """Save from all ranks what each holds; moments are the optimizer's."""
    base = Crew(mesh=mesh, placements=placements, **{"attempt": "a", "patience_s": 20, **crew})

    def save(rank: int) -> Path:
        mine = holding(rank)
        moments = {name: array for name, array in mine.items() if "moment" in name or "power" in name}
        weights = {name: array for name, array in mine.items() if name not in moments}
        return save_checkpoint(
            folder, step=step, weights=weights, optimizer=moments, layout={"dp": mesh.dp},
            crew=dataclasses.replace(base, rank=rank), **FACTS,
        )

    with ThreadPoolExecutor(mesh.num_devices) as ranks:
        return list(ranks.map(save, range(mesh.num_devices)))[0]
