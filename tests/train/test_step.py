"""The compiled step: micro-batches, ignored labels, clipping, and steps that are not finite."""

from __future__ import annotations

import numpy as np
import pytest

from mindmodel.recipe.schema import ModelSection, OptimSection, TrainSection

MODEL = ModelSection(
    hidden_size=32, num_layers=1, num_heads=4, num_kv_heads=2, head_size=8, ffn_size=48, vocab_size=67, qk_norm=False
)
SEQ_LEN, NUM_SEQUENCES = 12, 4


def batch(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(seed)
    ids, labels = random.randint(0, 67, (2, NUM_SEQUENCES, SEQ_LEN)).astype(np.int32)
    labels[0, :7] = -100
    return ids, labels


class Stepper:
    """A model of its own and its compiled step."""

    def __init__(self, compiling, micro_batches=1, optim=OptimSection(peak_lr=1e-2), **train):
        from mindmodel.models.decoder import Decoder, DecoderLoss, initialize
        from mindmodel.train.optim import AdamW
        from mindmodel.train.step import TrainStep

        section = TrainSection(steps=9, tokens_per_step=NUM_SEQUENCES * SEQ_LEN, **train)
        self.decoder, self.compiling = Decoder(MODEL, SEQ_LEN), compiling
        initialize(self.decoder, MODEL, 5)
        self.optimizer = AdamW(self.decoder.trainable_params(), optim, section.check_finite != "none")
        network = DecoderLoss(self.decoder, MODEL.vocab_size, section.z_loss)
        self.step = TrainStep(network, self.optimizer, section, micro_batches).set_train()

    def __call__(self, ids, labels, lr=1e-2):
        import mindspore as ms
        from mindspore import Tensor

        with self.compiling():
            outputs = self.step(Tensor(ids), Tensor(labels), Tensor(lr, ms.float32))
        return [output.asnumpy() for output in outputs]

    def state(self) -> dict[str, np.ndarray]:
        parameters = [*self.decoder.trainable_params(), *self.optimizer.state().values()]
        return {parameter.name: parameter.asnumpy() for parameter in parameters}


def test_micro_batches_sum_to_the_whole_batch_weighted_by_labels(compiling):
    whole, parts = Stepper(compiling), Stepper(compiling, micro_batches=2)
    for seed in range(3):
        expected, found = whole(*batch(seed)), parts(*batch(seed))
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    expected = whole.state()
    for name, array in parts.state().items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_clipping_scales_the_gradients_to_the_norm(compiling):
    unclipped, clipped = Stepper(compiling, clip_norm=0.0), Stepper(compiling, clip_norm=0.1)
    _, norm, _ = unclipped(*batch())
    _, same_norm, _ = clipped(*batch())
    assert norm == pytest.approx(same_norm, rel=1e-6) and norm > 0.2
    name = "first_moment.layers.0.mlp.down.weight"
    np.testing.assert_allclose(
        clipped.state()[name], unclipped.state()[name] * (0.1 / norm), rtol=1e-4, atol=1e-9
    )


def test_decay_spares_norms_and_by_choice_the_embedding(compiling):
    optim = OptimSection(weight_decay=0.5, decay_embeddings=False)
    stepper = Stepper(compiling, optim=optim)
    decays = dict(zip((p.name for p in stepper.optimizer.parameters), stepper.optimizer.update.decays))
    assert {name for name, decayed in decays.items() if not decayed} == {
        "embedding.weight", "layers.0.attention_norm.weight", "layers.0.mlp_norm.weight", "norm.weight",
    }


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_step_that_is_not_finite_leaves_everything_bitwise_as_it_was(value, steps_before, compiling):
    from mindspore import Tensor

    stepper = Stepper(compiling)
    for seed in range(steps_before):
        stepper(*batch(seed))
    weight = stepper.decoder.norm.weight
    good = weight.asnumpy().copy()
    bad = good.copy()
    bad[3] = value
    weight.set_data(Tensor(bad))
    before = stepper.state()
    _, _, applied = stepper(*batch())
    assert not applied
    for name, array in stepper.state().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    weight.set_data(Tensor(good))
    loss, norm, applied = stepper(*batch())
    assert applied and np.isfinite(loss) and np.isfinite(norm)


def test_without_the_check_the_step_is_applied(compiling):
    from mindspore import Tensor

    stepper = Stepper(compiling, check_finite="none")
    weight = stepper.decoder.norm.weight
    bad = weight.asnumpy().copy()
    bad[3] = np.nan
    weight.set_data(Tensor(bad))
    assert stepper(*batch())[2]


def test_z_loss_is_trained_on_and_not_reported(compiling):
    plain, with_z = Stepper(compiling), Stepper(compiling, z_loss=1.0)
    expected, found = plain(*batch()), with_z(*batch())
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert found[1] > 1.1 * expected[1]
