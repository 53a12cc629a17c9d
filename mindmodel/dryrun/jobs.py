"""What is to be compiled, between the process that asks and the one that compiles."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from mindmodel.parallel.mesh import mesh_of
from mindmodel.recipe.dump import recipe_to_dict
from mindmodel.recipe.load import recipe_from_dict
from mindmodel.recipe.schema import Recipe

JOBS_NAME = "jobs.json"
GRAPH_NAME = "graph.mindir"
FORWARD_NAME = "forward.mindir"
SLICES_NAME = "slices.safetensors"
RESULT_NAME = "result.json"
LOG_NAME = "log.txt"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One rank of a recipe.

    Attributes:
        name: of its folder.
        recipe: with the vocabulary's size and all degrees filled in.
        level: MindSpore's MS_SIMULATION_LEVEL. 0: the front end only, for the graph; 1: kernels chosen and one step
            played, for the memory.
        weights: whether level 0 also makes this rank's slices of fresh weights; otherwise they take no memory, and the
            compiler tells its seconds.
        forward: whether that also compiles the forward pass of evaluation, after the step as in a run.
    """

    name: str
    recipe: Recipe
    rank: int
    level: int
    weights: bool = True
    forward: bool = False

    @property
    def num_ranks(self) -> int:
        """Of the whole mesh."""
        return mesh_of(self.recipe.parallel).num_devices


def write_jobs(path: Path, jobs: Sequence[Job], at_once: int) -> None:
    """Write the jobs and how many of them may run at a time."""
    rows = [{**vars(job), "recipe": recipe_to_dict(job.recipe)} for job in jobs]
    path.write_text(json.dumps({"at_once": at_once, "jobs": rows}))


def read_jobs(path: Path) -> tuple[tuple[Job, ...], int]:
    """The jobs and how many of them may run at a time."""
    content = json.loads(path.read_text())
    jobs = (Job(**{**row, "recipe": recipe_from_dict(row["recipe"], path)}) for row in content["jobs"])
    return tuple(jobs), content["at_once"]
