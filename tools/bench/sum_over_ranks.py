"""A worker of msrun: how long the ranks take to sum the gradients of a recipe, with nothing else to do.

usage: msrun ... sum_over_ranks.py RECIPE.json ROUNDS RESULT.json    (the first rank writes the seconds of each round)
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from mindmodel.files import read_json
from mindmodel.models.family import parameter_shapes
from mindmodel.parallel.environment import place, prepare_environment
from mindmodel.recipe.load import recipe_from_dict


def main(recipe_path: str, rounds: str, result: str) -> None:
    recipe = recipe_from_dict(read_json(Path(recipe_path), ValueError), recipe_path)
    prepare_environment(recipe.runtime)
    import numpy as np
    from mindspore import Tensor

    from mindmodel.parallel.runtime import serve_ranks, start_runtime
    from mindmodel.train.rank_step import SumOverRanks

    if place().is_scheduler:
        return serve_ranks()
    runtime = start_runtime(recipe, "sum")
    shapes = parameter_shapes(recipe.model).values()
    gradients = tuple(Tensor(np.ones(shape, np.float32)) for shape in shapes)
    sum_over_ranks, seconds = SumOverRanks(), []
    for _ in range(int(rounds) + 1):
        runtime.ranks.meet()
        start = time.perf_counter()
        for summed in sum_over_ranks(gradients):
            summed.asnumpy()
        seconds.append(time.perf_counter() - start)
    if runtime.ranks.is_first:
        Path(result).write_text(json.dumps(seconds[1:]))  # the first one compiled


if __name__ == "__main__":
    main(*sys.argv[1:])
