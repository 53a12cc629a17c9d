"""The Cells of a training step, from a recipe."""

from __future__ import annotations

from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore.nn.utils import no_init_parameters

from mindmodel.data.loader import Batch, Share
from mindmodel.models.decoder import Decoder, DecoderLoss
from mindmodel.parallel.apply import partitioned
from mindmodel.parallel.mesh import mesh_of
from mindmodel.parallel.plans.decoder import decoder_plan, sees_activations
from mindmodel.recipe.schema import ParallelSection, Recipe
from mindmodel.train.norms import Held, parts_of
from mindmodel.train.optim import AdamW
from mindmodel.train.rank_step import DataParallelStep, RankStep, laid_out_step, single_loss
from mindmodel.train.step import TrainStep


@dataclass(frozen=True, kw_only=True)
class Built:
    """A training step and what it updates.

    Attributes:
        step: of one rank.
        whole: what is called: the step, inside of MindSpore's partitioning where there is one.
        share: of the global batch that this rank is given.
        rows: sequences of that share, with those that only fill it up.
    """

    decoder: Decoder
    optimizer: AdamW
    step: nn.Cell
    whole: nn.Cell
    share: Share
    rows: int

    @property
    def is_partitioned(self) -> bool:
        """Whether MindSpore cuts the step, so that once it is compiled this rank's parameters are slices."""
        return isinstance(self.step, RankStep)

    def held(self) -> Held:
        """What `run` gives of norms; of a partitioned step, once it is compiled."""
        parameters = self.optimizer.parameters
        if self.is_partitioned:
            return self.step.held(set(self.whole.parallel_parameter_name_list))
        activations = parts_of(len(self.decoder.layers))[:-1]
        return Held(
            parameters={parameter.name: 1.0 / self.share.of for parameter in parameters},
            activations=dict.fromkeys(activations, 1.0),
        )

    def forward_pass(self, recipe: Recipe) -> nn.Cell:
        """The network for evaluation, of as many sequences as a micro-batch of `rows` has.

        Of a partitioned step it is that of the step, to be compiled after it. That gives the cross entropy alone; of
        several stages only the last has it.
        """
        if self.is_partitioned:
            return partitioned(single_loss(self.step), recipe.parallel).set_train(False)
        return DecoderLoss(self.decoder, recipe.model.vocab_size, gradient=False).set_train(False)

    def example(self, recipe: Recipe) -> tuple[Tensor, ...]:
        """Inputs of the shapes and dtypes that `run` gives `whole`; nothing is in them."""
        ids = Tensor(np.zeros((self.rows, recipe.data.seq_len), np.int32))
        return (ids, ids) if self.is_partitioned else (ids, ids, Tensor(0.0, ms.float32))

    def run(self, batch: Batch, lr: float) -> tuple[Tensor, ...]:
        """One step: mean cross entropy of the global batch, gradient norm before clipping, whether it was applied, and
        with log.norms_every what `own_squares` reads."""
        inputs = Tensor(batch.ids), Tensor(batch.labels)
        if not self.is_partitioned:
            return self.whole(*inputs, Tensor(lr, ms.float32))
        self.step.set_scalars(int((batch.labels >= 0).sum()), lr)
        return self.whole(*inputs)


def is_partitioned(parallel: ParallelSection) -> bool:
    """Whether MindSpore cuts the step of a layout over its ranks; on CPU every rank holds the whole model."""
    return mesh_of(parallel).num_devices > 1 and ms.get_context("device_target") != "CPU"


def build_without_numbers(recipe: Recipe, rank: int = 0) -> Built:
    """As build, of parameters that have a shape and take no memory; where the step is partitioned, that of this rank's
    slice once it is compiled. They are to be filled then."""
    with no_init_parameters():
        return build(recipe, rank)


def build(recipe: Recipe, rank: int = 0) -> Built:
    """The training step of a recipe, its weights zero; laid out over the mesh where that has several devices.

    On CPU, where MindSpore partitions nothing, every rank holds the whole model: dp is the only degree there.

    Args:
        recipe: with `model.vocab_size` and all degrees filled in.
        rank: of this process in the mesh.

    Raises:
        LayoutError: if the plan and the model do not fit.
    """
    model, train, parallel = recipe.model, recipe.train, recipe.parallel
    decoder = Decoder(model, recipe.data.seq_len, train.compute_dtype)
    norms = recipe.log.norms_every > 0
    optimizer = AdamW(decoder.trainable_params(), recipe.optim, train.check_finite != "none", norms)
    mesh, share, rows = mesh_of(parallel), Share(), recipe.padded_sequences
    cut = is_partitioned(parallel)
    filled_up = recipe.padded_sequences > recipe.sequences_per_step
    network = DecoderLoss(
        decoder, model.vocab_size, train.z_loss, norms=norms and not cut, filled_up=filled_up
    )
    if mesh.num_devices == 1:
        step = TrainStep(network, optimizer, train, parallel.micro_batches)
    elif not cut:
        step = DataParallelStep(network, optimizer, train, parallel.micro_batches)
        share, rows = Share(index=rank, of=mesh.dp), recipe.sequences_per_rank
    else:
        plan, sees = decoder_plan(model, parallel), norms and not filled_up and sees_activations(parallel)
        step = laid_out_step(network, optimizer, train, parallel, plan, rank, sees)
    step.set_train()
    whole = partitioned(step, parallel) if cut else step
    return Built(decoder=decoder, optimizer=optimizer, step=step, whole=whole, share=share, rows=rows)
