"""The Cells of a training step, from a recipe."""

from __future__ import annotations

from dataclasses import dataclass

from mindspore import nn

from mindmodel.models.decoder import Decoder, DecoderLoss
from mindmodel.parallel.apply import laid_out_step
from mindmodel.parallel.mesh import mesh_of
from mindmodel.parallel.plans.decoder import decoder_plan
from mindmodel.recipe.schema import Recipe
from mindmodel.train.optim import AdamW
from mindmodel.train.step import TrainStep


@dataclass(frozen=True, kw_only=True)
class Built:
    """A training step and what it updates."""

    decoder: Decoder
    optimizer: AdamW
    step: nn.Cell


def build(recipe: Recipe, rank: int = 0) -> Built:
    """The training step of a recipe, its weights zero; laid out over the mesh where that has several devices.

    Args:
        recipe: with `model.vocab_size` and all degrees filled in.
        rank: of this process in the mesh.

    Raises:
        LayoutError: if the plan and the model do not fit.
    """
    model, train, parallel = recipe.model, recipe.train, recipe.parallel
    decoder = Decoder(model, recipe.data.seq_len, train.compute_dtype)
    optimizer = AdamW(decoder.trainable_params(), recipe.optim, train.check_finite != "none")
    network = DecoderLoss(decoder, model.vocab_size, train.z_loss)
    if mesh_of(parallel).num_devices > 1:
        step = laid_out_step(network, optimizer, train, parallel, decoder_plan(model, parallel), rank)
    else:
        step = TrainStep(network, optimizer, train, parallel.micro_batches)
    return Built(decoder=decoder, optimizer=optimizer, step=step.set_train())
