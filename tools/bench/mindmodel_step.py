"""Child: mindmodel's training steps, with the norms of layers where the spec asks for them."""

from __future__ import annotations

from bench.child import Work, serve
from bench.sizes import SIZES, batch, recipe_of

from mindmodel.parallel.environment import prepare_environment


def load(spec: dict):
    """Spec: size, dtype, threads, cpu_kernels; norms_every, default 0."""
    size = SIZES[spec["size"]]
    recipe = recipe_of(size, spec["threads"], spec["dtype"], spec["cpu_kernels"])
    prepare_environment(recipe.runtime)
    import mindspore as ms

    from mindmodel.models.decoder import initialize
    from mindmodel.parallel.runtime import start_runtime
    from mindmodel.train.build import build as build_step

    recipe = recipe.with_keys({"log.norms_every": spec.get("norms_every", 0)})

    def build() -> Work:
        runtime = start_runtime(recipe, "train")
        built, lr = build_step(recipe), ms.Tensor(recipe.optim.peak_lr, ms.float32)
        initialize(built.decoder, recipe.model, recipe.train.seed)
        train_step = built.step
        with runtime.cache.compiling():
            train_step.compile(*map(ms.Tensor, batch(size, 0)), lr)

        def work(index: int) -> float:
            outputs = train_step(*map(ms.Tensor, batch(size, index)), lr)
            loss, _, applied, *_ = (output.asnumpy() for output in outputs)
            assert applied
            return float(loss)

        return work

    return build


if __name__ == "__main__":
    serve(load)
