"""Ascend's form of the training step, executed in NumPy, against the step that really runs on CPU.

Both sides of a proof of a layout share their operators and MindSpore's differentiation; here they do not.
"""

from __future__ import annotations

import numpy as np
import pytest

from dry_runs import recipe_for
from mindmodel.dryrun.compile import compiled
from mindmodel.dryrun.jobs import Job
from mindmodel.dryrun.prove import LR, MOMENT, batches_of, execute

RTOL = 1e-5
SEQ_LEN, VOCAB_SIZE = 12, 67

FAMILIES = {
    "llama": {"rope_scaling": {"type": "llama3", "factor": 4.0, "original_max_position_embeddings": 8}},
    "qwen3": {"tied_embeddings": True, "norm_eps": 1e-6},
}


def recipe_of(family: str):
    """Qwen3 with its QK-norm."""
    sizes = {"hidden_size": 24, "num_layers": 2, "ffn_size": 48, "vocab_size": VOCAB_SIZE}
    heads = {"num_heads": 6, "num_kv_heads": 2, "head_size": 8}
    return recipe_for(
        {"family": family, **sizes, **heads, **FAMILIES[family]}, seq_len=SEQ_LEN, sequences=2,
        train={"clip_norm": 0.5, "seed": 3}, runtime={"device": "cpu", "cpu_kernels": "graph"}, dp=1,
    )


@pytest.fixture(scope="module")
def executions(standin):
    """Family -> its batches and what the interpreter makes of them."""
    jobs = [Job(name=family, recipe=recipe_of(family), rank=0, level=0) for family in FAMILIES]
    with compiled(jobs, 2) as results:
        found = {}
        for family, result in results.items():
            batches = batches_of(result.job.recipe)
            found[family] = batches, execute([result.graph()], [result.slices()], batches)
        return found


def on_cpu(recipe, batches, compiling):
    """Losses, norms, and Adam's first moments after the first step, of the real step on CPU."""
    import mindspore as ms
    from mindspore import Tensor

    from mindmodel.models.decoder import initialize
    from mindmodel.train.build import build

    built = build(recipe)
    initialize(built.decoder, recipe.model, recipe.train.seed)
    losses, norms, moments = [], [], {}
    for batch in batches:
        inputs = Tensor(batch.ids), Tensor(batch.labels), Tensor(LR, ms.float32)
        with compiling():
            loss, norm, applied = (output.asnumpy() for output in built.step(*inputs))
        assert applied
        losses.append(float(loss))
        norms.append(float(norm))
        moments = moments or {name: array.asnumpy().copy() for name, array in built.optimizer.state().items()}
    return losses, norms, moments


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_norm_and_every_gradient_are_those_of_the_cpu(family, executions, kernels_of, without_fusion, compiling):
    kernels_of("CPU")
    batches, ascend = executions[family]
    losses, norms, moments = on_cpu(recipe_of(family), batches, compiling)
    np.testing.assert_allclose(losses, [step[0] for step in ascend.losses], rtol=RTOL)
    np.testing.assert_allclose(norms, [step[0] for step in ascend.norms], rtol=RTOL)
    assert len(ascend.moments[0]) > 10
    for name, expected in ascend.moments[0].items():
        assert np.abs(moments[f"{MOMENT}{name}"] - expected).max() <= RTOL * np.abs(expected).max(), name
