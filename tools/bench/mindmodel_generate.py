"""Child: greedy answers of mindmodel's generator."""

from __future__ import annotations

import numpy as np
from bench.child import Work, serve
from bench.sizes import NUM_NEW, SIZES, prompts, recipe_of

from mindmodel.parallel.environment import prepare_environment


def load(spec: dict):
    """Spec: size, batch, threads."""
    size = SIZES[spec["size"]]
    recipe, ids = recipe_of(size, spec["threads"]), prompts(size, spec["batch"]).tolist()
    prepare_environment(recipe.runtime)
    from mindmodel.generation.sample import Generator, Sampling
    from mindmodel.models.decoder import Decoder, initialize
    from mindmodel.parallel.runtime import start_runtime

    def build() -> Work:
        runtime = start_runtime(recipe, "generate")
        decoder = Decoder(recipe.model, recipe.data.seq_len)
        initialize(decoder, recipe.model, recipe.train.seed)
        generator = Generator(decoder, recipe.model, size.vocab_size, len(ids[0]) + NUM_NEW, len(ids))
        with runtime.cache.compiling():
            generator.compile(ids[0])
        greedy = Sampling(temperature=0)
        return lambda index: np.stack(list(generator.stream(ids, NUM_NEW, greedy)), 1).tolist()

    return build


if __name__ == "__main__":
    serve(load)
