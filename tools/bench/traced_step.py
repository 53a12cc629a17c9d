"""Child: mindmodel's training steps with taps behind every Cell, all arrays fetched as `debug trace` does."""

from __future__ import annotations

from bench.child import Work, serve
from bench.sizes import SIZES, batch, recipe_of

from mindmodel.data.loader import Batch
from mindmodel.parallel.environment import prepare_environment


def load(spec: dict):
    """Spec: size, dtype, threads, cpu_kernels."""
    size = SIZES[spec["size"]]
    recipe = recipe_of(size, spec["threads"], spec["dtype"], spec["cpu_kernels"])
    prepare_environment(recipe.runtime)
    from mindmodel.debug.traces.inputs import Inputs
    from mindmodel.debug.traces.tapped import TracedSteps
    from mindmodel.parallel.runtime import start_runtime

    def build() -> Work:
        steps = TracedSteps(recipe, start_runtime(recipe, "trace"))

        def work(index: int) -> float:
            ids, labels = batch(size, index)
            return steps.trace(Inputs(batch=Batch(ids=ids, labels=labels), lr=recipe.optim.peak_lr), "bench").loss

        return work

    return build


if __name__ == "__main__":
    serve(load)
