"""Sizes of what one rank of a layout holds and computes with. Pure Python."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Mapping

from mindmodel.models.family import parameter_shapes
from mindmodel.parallel.mesh import Mesh, Shape, local_shape, mesh_of, stage_of
from mindmodel.parallel.plan import Plan, sharded_axes
from mindmodel.parallel.plans.decoder import (
    decoder_plan,
    kv_copies,
    layer_places,
    most_logit_slices,
    sums_in_compute_dtype,
)
from mindmodel.recipe.schema import Recipe

OUTSIDE = ("embedding.weight", "norm.weight", "head.weight")
"""Parameters that stand in no layer."""
TABLE = OUTSIDE[0]


@dataclass(frozen=True, kw_only=True)
class Held:
    """Elements of the parameters of one name, over the layers that a rank has.

    Attributes:
        count: layers; 1 for a parameter outside them.
        whole: of the rank's tensor parallel slice.
        own: of that, what optimizer sharding leaves to the rank.
    """

    count: int
    whole: int
    own: int


@dataclass(frozen=True)
class RankSizes:
    """Sizes of what one rank computes with."""

    recipe: Recipe
    rank: int

    @cached_property
    def mesh(self) -> Mesh:
        """Of the whole job."""
        return mesh_of(self.recipe.parallel)

    @cached_property
    def plan(self) -> Plan:
        """Of the whole model."""
        return decoder_plan(self.recipe.model, self.recipe.parallel)

    @cached_property
    def stage(self) -> int:
        """Of the pipeline, from 0."""
        return stage_of(self.rank, self.mesh)

    @property
    def is_alone(self) -> bool:
        """Whether it is the only one: then nothing is cut, and nothing computed again."""
        return self.mesh.num_devices == 1

    @property
    def is_last(self) -> bool:
        """Whether this stage ends with the head and the loss."""
        return self.stage == self.mesh.pp - 1

    @cached_property
    def num_layers(self) -> int:
        """Of this stage."""
        places = layer_places(self.recipe.model, self.recipe.parallel)
        return sum(stage == self.stage for stage, _ in places)

    @property
    def has_copy(self) -> bool:
        """Whether this stage is sent a tied embedding; MindSpore has an optimizer for the copy too."""
        return self.recipe.model.tied_embeddings and self.is_last and self.mesh.pp > 1

    @property
    def num_recomputed(self) -> int:
        """Layers of this stage that are computed again in the backward pass."""
        parallel = self.recipe.parallel
        if parallel.recompute == "none" or self.is_alone:
            return 0
        return self.num_layers if parallel.recompute_layers is None else min(self.num_layers, parallel.recompute_layers)

    @property
    def num_repeated(self) -> int:
        """Layers that are recomputed as a whole."""
        return self.num_recomputed if self.recipe.parallel.recompute == "full" else 0

    @property
    def accumulates(self) -> bool:
        """Whether gradients are summed over micro-batches."""
        return self.recipe.parallel.micro_batches > 1 or self.mesh.pp > 1

    @property
    def in_flight(self) -> float:
        """Micro-batches whose activations are alive at once: 1F1B, interleaved by chunks.

        Source: Narayanan et al. (arXiv 2104.04473) section 2.2.
        """
        micro_batches, chunks = self.recipe.parallel.micro_batches, self.recipe.parallel.interleave
        after = self.mesh.pp - self.stage - 1
        if chunks == 1:
            return min(micro_batches, after + 1)
        return min(micro_batches * chunks, 2 * after + (chunks - 1) * self.mesh.pp + 1) / chunks

    @property
    def slices_accumulators(self) -> bool:
        """Whether gradients are scattered after each micro-batch."""
        return self.recipe.parallel.shard_optimizer in ("gradients", "parameters")

    @property
    def num_data_ranks(self) -> int:
        """Ranks that compute with the same slices of weights, each on tokens of its own."""
        return self.mesh.dp * self.mesh.cp

    @property
    def gathers_weights(self) -> bool:
        """Whether ranks keep slices of weights that they compute with whole."""
        return self.recipe.parallel.shard_optimizer != "none" and self.num_data_ranks > 1

    @property
    def value_bytes(self) -> int:
        """Of one activation."""
        return 2 if self.recipe.train.compute_dtype == "bfloat16" else 4

    @cached_property
    def tokens(self) -> int:
        """Of a micro-batch."""
        parallel = self.recipe.parallel
        return self.recipe.sequences_per_rank * self.recipe.data.seq_len // (self.mesh.cp * parallel.micro_batches)

    @property
    def stream_tokens(self) -> int:
        """Of a micro-batch, in norms and residuals."""
        return self.tokens // self.mesh.tp if self.recipe.parallel.sequence_parallel else self.tokens

    @property
    def stream(self) -> int:
        """Numbers of the residual stream of a micro-batch, as norms have it."""
        return self.stream_tokens * self.recipe.model.hidden_size

    @property
    def whole_stream(self) -> int:
        """The same gathered over tp."""
        return self.tokens * self.recipe.model.hidden_size

    @property
    def keeps_tokens(self) -> bool:
        """Whether those that are gathered over tp stay for the backward pass."""
        return self.recipe.parallel.gathered_tokens == "kept"

    @property
    def loss_slices(self) -> int:
        """In which tokens have their logits in float32, one after the other."""
        return math.gcd(self.tokens, most_logit_slices(self.recipe.parallel))

    @property
    def has_own_embedding(self) -> bool:
        """Whether the table is cast before it is gathered."""
        return any(rule.layer == "embedding" for rule in self.plan.local)

    def width(self, size: int) -> int:
        """Of a dim that is cut over tp."""
        return size // self.mesh.tp

    @property
    def vocabulary(self) -> int:
        """Entries of the vocabulary that the rank has."""
        return self.width(self.recipe.model.vocab_size or 0)

    @property
    def head_name(self) -> str:
        """Of the output layer's weight."""
        return TABLE if self.recipe.model.tied_embeddings else "head.weight"

    @property
    def sums_in_compute(self) -> bool:
        """Whether WeightOverDp gathers matrices and scatters their gradients."""
        return sums_in_compute_dtype(self.recipe.parallel)

    @property
    def kv_copies(self) -> int:
        """Ranks of tp that share a KV head."""
        return kv_copies(self.recipe.model, self.recipe.parallel)

    @property
    def head_size(self) -> int:
        """Of attention, also where it follows from other sizes."""
        return self.recipe.model.head_size or 0

    @property
    def q_width(self) -> int:
        """Of the queries of all heads that the rank has."""
        return self.width(self.recipe.model.num_heads) * self.head_size

    @property
    def kv_width(self) -> int:
        """Of the keys of all heads that the rank has, its copies among them; of the values the same."""
        return self.width((self.recipe.model.num_kv_heads or 0) * self.kv_copies) * self.head_size

    @property
    def qkv_width(self) -> int:
        """Of queries, keys and values as they are projected, without copies."""
        model = self.recipe.model
        return self.width((model.num_heads + 2 * (model.num_kv_heads or 0)) * self.head_size)

    @cached_property
    def held(self) -> Mapping[str, Held]:
        """Parameters that this rank updates; those of layers by their name within one."""
        one_layer = parameter_shapes(dataclasses.replace(self.recipe.model, num_layers=1))
        held = {}
        for name, shape in one_layer.items():
            within = name.removeprefix("layers.0.")
            count = self.num_layers if within != name else int(self.plan.stage_of(name) == self.stage)
            if name == TABLE and self.has_copy:
                count = 1
            if count:
                held[within] = self._held_of(name, shape, count)
        return held

    @property
    def num_own(self) -> int:
        """Parameters that this rank updates."""
        return sum(held.own for held in self.held.values())

    def _held_of(self, name: str, shape: Shape, count: int) -> Held:
        axes = self.plan.axes_of(name)
        sharded = self.recipe.parallel.shard_optimizer != "none"
        own_axes = sharded_axes(axes, shape, self.mesh) if sharded else axes
        whole, own = (math.prod(local_shape(shape, cut, self.mesh)) for cut in (axes, own_axes))
        return Held(count=count, whole=count * whole, own=count * own)
