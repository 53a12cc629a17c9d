"""Child: mindmodel's training steps."""

from __future__ import annotations

from bench.child import Work, serve
from bench.sizes import SIZES, batch, recipe_of

from mindmodel.parallel.environment import prepare_environment


def load(spec: dict):
    """Spec: size, dtype, threads, cpu_kernels."""
    prepare_environment(spec["threads"], spec["cpu_kernels"])
    import mindspore as ms

    from mindmodel.models.decoder import Decoder, DecoderLoss, initialize
    from mindmodel.parallel.runtime import start_runtime
    from mindmodel.train.optim import AdamW
    from mindmodel.train.step import TrainStep

    size = SIZES[spec["size"]]
    recipe = recipe_of(size, spec["threads"], spec["dtype"], spec["cpu_kernels"])

    def make() -> TrainStep:
        """As mindmodel.train.loop does."""
        decoder = Decoder(recipe.model, recipe.data.seq_len, recipe.train.compute_dtype)
        initialize(decoder, recipe.model, recipe.train.seed)
        optimizer = AdamW(decoder.trainable_params(), recipe.optim, recipe.train.check_finite != "none")
        network = DecoderLoss(decoder, recipe.model.vocab_size, recipe.train.z_loss)
        return TrainStep(network, optimizer, recipe.train, recipe.parallel.micro_batches).set_train()

    def build() -> Work:
        runtime = start_runtime(recipe, "train")
        train_step, lr = make(), ms.Tensor(recipe.optim.peak_lr, ms.float32)
        with runtime.cache.compiling():
            train_step.compile(*map(ms.Tensor, batch(size, 0)), lr)

        def work(index: int) -> float:
            outputs = train_step(*map(ms.Tensor, batch(size, index)), lr)
            loss, _, applied = (float(output.asnumpy()) for output in outputs)
            assert applied
            return loss

        return work

    return build


if __name__ == "__main__":
    serve(load)
