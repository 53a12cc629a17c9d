"""The network against Hugging Face's on torch, same weights: logits, every gradient, and 30 optimizer steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from graph import as_cell
from mindmodel.models.family import find_family, parameter_shapes
from mindmodel.models.weight_rules import to_ours
from mindmodel.recipe.schema import ModelSection, OptimSection, RopeScaling, TrainSection
from mindmodel.tensor_file import LazyTensor

LOGITS_ATOL = 1e-5  # absolute
GRADIENT_RTOL = 1e-4  # largest difference over largest entry, per tensor
LOSS_RTOL = 1e-3  # over 30 AdamW steps
NUM_STEPS = 30
SEQ_LEN, VOCAB_SIZE = 48, 131

LLAMA3 = RopeScaling(type="llama3", factor=4.0, original_max_position_embeddings=16)
LINEAR = RopeScaling(type="linear", factor=2.0)
SIZES = dict(hidden_size=48, num_layers=2, num_heads=6, num_kv_heads=2, ffn_size=80, vocab_size=VOCAB_SIZE)
MODELS = {
    "llama": ModelSection(family="llama", head_size=8, qk_norm=False, **SIZES),
    "llama tied, llama3 scaling": ModelSection(
        family="llama", head_size=8, qk_norm=False, tied_embeddings=True, rope_scaling=LLAMA3, **SIZES
    ),
    "qwen3, wide heads": ModelSection(family="qwen3", head_size=16, qk_norm=True, rope_theta=1e6, **SIZES),
    "qwen3 tied, linear scaling": ModelSection(
        family="qwen3", head_size=8, qk_norm=True, tied_embeddings=True, rope_scaling=LINEAR, norm_eps=1e-6, **SIZES
    ),
}


def hugging_face_model(model: ModelSection) -> transformers.PreTrainedModel:
    """Random weights, also those of the norms, large enough that a wrong formula shows."""
    config = transformers.AutoConfig.for_model(**find_family(model.family).write_config(model))
    torch.manual_seed(7)
    peer = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in peer.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(1 + 0.2 * noise if parameter.dim() == 1 else 0.1 * noise)
    return peer


def ours(model: ModelSection, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The peer's tensors, or their gradients, under our names and in our row order."""
    theirs = {
        name: LazyTensor(shape=array.shape, dtype=array.dtype, read=lambda array=array: array)
        for name, array in arrays.items()
    }
    joined = to_ours(find_family(model.family).rules, model, parameter_shapes(model), theirs, Path("the peer"))
    return {name: tensor.read() for name, tensor in joined.items()}


def weights_of(peer) -> dict[str, np.ndarray]:
    """Tied weights once."""
    return {name: parameter.detach().numpy() for name, parameter in peer.named_parameters()}


def batches(count: int, num_sequences: int = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    """Token ids and labels; some labels are ignored."""
    random = np.random.RandomState(3)
    result = []
    for _ in range(count):
        tokens = random.randint(0, VOCAB_SIZE, (num_sequences, SEQ_LEN + 1)).astype(np.int32)
        ids, labels = np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])
        labels[:, ::5] = -100
        result.append((ids, labels))
    return result


def peer_loss(peer, ids, labels):
    logits = peer(input_ids=torch.from_numpy(ids.astype(np.int64))).logits
    flat = torch.from_numpy(labels.astype(np.int64)).reshape(-1)
    return torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB_SIZE), flat, ignore_index=-100)


@pytest.fixture(params=["CPU", "Native"])
def kernels(request, kernels_of):
    kernels_of(request.param)


def decoder_with_weights_of(peer, model: ModelSection, compute_dtype: str = "float32"):
    from mindmodel.models.decoder import Decoder
    from mindmodel.train.state import fill

    decoder = Decoder(model, SEQ_LEN, compute_dtype)
    fill(decoder.trainable_params(), ours(model, weights_of(peer)), "the peer")
    return decoder


@pytest.fixture(params=MODELS, ids=list(MODELS))
def pair(request, kernels):
    """A model, Hugging Face's network and ours with the same weights."""
    model = MODELS[request.param]
    peer = hugging_face_model(model)
    return model, peer, decoder_with_weights_of(peer, model)


def test_logits_gradients_and_thirty_steps_equal_hugging_faces(pair, compiling):
    from mindspore import Tensor

    model, peer, decoder = pair
    ids, labels = batches(1)[0]
    with compiling():
        logits = decoder(Tensor(ids)).asnumpy().reshape(3, SEQ_LEN, VOCAB_SIZE)
    expected = peer(input_ids=torch.from_numpy(ids.astype(np.int64))).logits.detach().numpy()
    assert np.abs(expected).max() > 0.5  # not a comparison of zeros
    np.testing.assert_allclose(logits, expected, rtol=0, atol=LOGITS_ATOL)

    check_gradients(model, peer, decoder, ids, labels, compiling)
    check_steps(model, peer, decoder, compiling)


def loss_and_gradients(decoder, ids, labels, compiling) -> tuple[float, dict[str, np.ndarray]]:
    """Means over the labels that count."""
    import mindspore as ms
    from mindspore import Tensor

    from mindmodel.models.decoder import DecoderLoss

    parameters = ms.ParameterTuple(decoder.trainable_params())
    grad = ms.value_and_grad(DecoderLoss(decoder, VOCAB_SIZE), None, weights=parameters, has_aux=True)
    with compiling():
        (total, _), gradients = as_cell(grad)(Tensor(ids), Tensor(labels))
    count = (labels >= 0).sum()
    found = {parameter.name: gradient.asnumpy() / count for parameter, gradient in zip(parameters, gradients)}
    return float(total.asnumpy()) / count, found


def peer_loss_and_gradients(peer, model, ids, labels) -> tuple[float, dict[str, np.ndarray]]:
    loss = peer_loss(peer, ids, labels)
    loss.backward()
    theirs = {name: parameter.grad.float().numpy() for name, parameter in peer.named_parameters()}
    peer.zero_grad()
    return float(loss.detach()), ours(model, theirs)


def check_gradients(model, peer, decoder, ids, labels, compiling):
    loss, gradients = loss_and_gradients(decoder, ids, labels, compiling)
    expected_loss, expected = peer_loss_and_gradients(peer, model, ids, labels)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert gradients.keys() == expected.keys()
    for name, wanted in expected.items():
        assert np.abs(gradients[name] - wanted).max() / np.abs(wanted).max() <= GRADIENT_RTOL, name


@pytest.mark.parametrize("name", ["llama", "qwen3 tied, linear scaling"])
def test_in_bfloat16_gradients_are_as_near_to_float32_as_hugging_faces(name, kernels, without_fusion, compiling):
    model = MODELS[name]
    peer = hugging_face_model(model)
    decoder = decoder_with_weights_of(peer, model, "bfloat16")
    ids, labels = batches(1)[0]
    loss, gradients = loss_and_gradients(decoder, ids, labels, compiling)
    exact_loss, exact = peer_loss_and_gradients(peer, model, ids, labels)
    _, theirs = peer_loss_and_gradients(peer.bfloat16(), model, ids, labels)
    assert loss == pytest.approx(exact_loss, rel=3e-3)
    for parameter, wanted in exact.items():
        error, peer_error = (
            np.linalg.norm(found[parameter] - wanted) / np.linalg.norm(wanted) for found in (gradients, theirs)
        )
        assert 1e-3 < error < 1.5 * peer_error, parameter


def check_steps(model, peer, decoder, compiling):
    import mindspore as ms
    from mindspore import Tensor

    from mindmodel.models.decoder import DecoderLoss
    from mindmodel.train.optim import AdamW
    from mindmodel.train.step import TrainStep

    optim = OptimSection(peak_lr=3e-3, weight_decay=0.1)
    train = TrainSection(steps=NUM_STEPS, tokens_per_step=3 * SEQ_LEN, clip_norm=1.0)
    optimizer = AdamW(decoder.trainable_params(), optim)
    step = TrainStep(DecoderLoss(decoder, VOCAB_SIZE), optimizer, train, 1).set_train()
    decayed = [parameter for parameter in peer.parameters() if parameter.dim() > 1]
    kept = [parameter for parameter in peer.parameters() if parameter.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}]
    rival = torch.optim.AdamW(groups, lr=3e-3, betas=(optim.beta1, optim.beta2), eps=optim.eps)
    for ids, labels in batches(NUM_STEPS):
        with compiling():
            loss, norm, _ = step(Tensor(ids), Tensor(labels), Tensor(3e-3, ms.float32))
        expected = peer_loss(peer, ids, labels)
        rival.zero_grad()
        expected.backward()
        expected_norm = torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        rival.step()
        assert float(loss.asnumpy()) == pytest.approx(float(expected.detach()), rel=LOSS_RTOL)
        assert float(norm.asnumpy()) == pytest.approx(float(expected_norm), rel=1e-2)
