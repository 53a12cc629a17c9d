"""A run that leaves as a Hugging Face folder gives the same logits and the same greedy tokens there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mindmodel.checkpoint.run_folder import resolve_weights
from mindmodel.convert.hf import from_hf, to_hf
from mindmodel.data.tokenizer import Tokenizer
from mindmodel.recipe.load import load_run_recipe
from mindmodel.recipe.schema import RopeScaling

LOGITS_ATOL = 1e-5
NUM_NEW = 24
MODELS = {
    "llama": {},
    "llama tied, llama3 scaling, padded vocabulary": dict(
        tied_embeddings=True,
        vocab_size=280,
        rope_scaling=RopeScaling(type="llama3", factor=4.0, original_max_position_embeddings=16),
    ),
    "qwen3 tied": dict(family="qwen3", tied_embeddings=True),
    "qwen3, linear scaling": dict(family="qwen3", rope_scaling=RopeScaling(type="linear", factor=2.0)),
}


def moderate(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Norms around one and matrices that neither vanish nor explode."""
    return {name: 1 + 0.2 * w if w.ndim == 1 else 0.2 * w for name, w in weights.items()}


@pytest.fixture(params=MODELS, ids=list(MODELS))
def exported(request, make_run, tmp_path):
    run = make_run(change=moderate, **MODELS[request.param])
    to_hf(run.path, tmp_path / "hf")
    peer, report = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    return run, tmp_path / "hf", peer.eval()


def ours(run_path):
    """Recipe, decoder and the tokenizer's size of a run."""
    from mindmodel.train.state import load_decoder

    run, checkpoint = resolve_weights(run_path)
    recipe = load_run_recipe(run.recipe_file)
    return recipe, load_decoder(recipe, checkpoint), Tokenizer.load(run.tokenizer).vocab_size


def test_logits_and_greedy_tokens_are_the_same(exported, compiling, tmp_path):
    from mindspore import Tensor

    from mindmodel.generation.sample import Generator, Sampling

    run, folder, peer = exported
    recipe, decoder, vocab_size = ours(run.path)
    prompt = AutoTokenizer.from_pretrained(folder)("two three\none")["input_ids"]
    assert prompt == Tokenizer.load(run.tokenizer).encode("two three\none")

    ids = np.random.RandomState(0).randint(0, vocab_size, (2, recipe.data.seq_len)).astype(np.int32)
    with compiling():
        logits = decoder(Tensor(ids)).asnumpy().reshape(2, recipe.data.seq_len, -1)[:, :, :vocab_size]
    expected = peer(torch.from_numpy(ids.astype(np.int64))).logits.detach().numpy()
    assert expected.shape == logits.shape and np.abs(expected).max() > 0.5
    np.testing.assert_allclose(logits, expected, rtol=0, atol=LOGITS_ATOL)

    generator = Generator(decoder, recipe.model, vocab_size, len(prompt) + NUM_NEW)
    with compiling():
        generator.compile(prompt)
    found = [int(token[0]) for token in generator.stream([prompt], NUM_NEW, Sampling(temperature=0))]
    limits = dict(max_new_tokens=NUM_NEW, do_sample=False, eos_token_id=None, pad_token_id=0)
    answer = peer.generate(torch.tensor([prompt]), **limits)
    assert found == answer[0, len(prompt):].tolist()

    from_hf(folder, tmp_path / "again")
    _, imported, _ = ours(tmp_path / "again")
    for parameter, same in zip(decoder.trainable_params(), imported.trainable_params()):
        rows = len(same.asnumpy())  # padding is gone
        np.testing.assert_array_equal(parameter.asnumpy()[:rows], same.asnumpy(), err_msg=parameter.name)
