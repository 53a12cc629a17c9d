"""What a step needs at least, by hand: the bytes that one rank holds at the peak, and those that its links carry.

The rules: float32 weights and moments are split over tp and dp; weights are gathered once, in bfloat16, and their
gradients scattered once, in float32; no activation is computed again, except with recompute=full, which keeps one
residual a layer. Workspaces of kernels and buffers of the communication are not counted. Imports no framework.
"""

from __future__ import annotations

from dataclasses import dataclass

from mindmodel.dryrun.report import ring_bytes
from mindmodel.parallel.mesh import mesh_of, stage_of
from mindmodel.recipe.schema import Recipe

STATE_BYTES = 12
"""Of a parameter: the weight and both moments, float32."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What one rank computes with. Every stage has as many layers, every micro-batch one sequence.

    Attributes:
        parameters: of the rank's stage, before anything is split.
        layers: of the stage.
        residual: bytes of [S, D] in bfloat16.
        ffn: bytes of [S, F] in bfloat16 on a tp rank.
        logits: elements of [S, V] on a tp rank.
        normalizers: bytes of attention's sums, [S, heads] in float32, on a tp rank.
    """

    dp: int
    tp: int
    pp: int
    stage: int
    micro_batches: int
    sequence_parallel: bool
    recomputes: bool
    parameters: int
    layers: int
    residual: int
    ffn: float
    logits: float
    normalizers: float

    @property
    def is_first(self) -> bool:
        """Whether the stage has the embedding."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether the stage has the head and the loss."""
        return self.stage == self.pp - 1

    @property
    def kept_residual(self) -> float:
        """Bytes of a residual as a rank keeps and sends it: sequence parallelism splits it over tp."""
        return self.residual / (self.tp if self.sequence_parallel else 1)


def sizes_of(recipe: Recipe, rank: int) -> Sizes:
    """Of a recipe whose degrees are all numbers."""
    model, parallel, mesh = recipe.model, recipe.parallel, mesh_of(recipe.parallel)
    stage, width, seq_len = stage_of(rank, mesh), model.hidden_size, recipe.data.seq_len
    layers, tables = model.num_layers // mesh.pp, (stage == 0) + (stage == mesh.pp - 1)
    a_layer = 4 * width**2 + 3 * width * model.ffn_size + 2 * width
    return Sizes(
        dp=mesh.dp,
        tp=mesh.tp,
        pp=mesh.pp,
        stage=stage,
        micro_batches=parallel.micro_batches,
        sequence_parallel=parallel.sequence_parallel,
        recomputes=parallel.recompute == "full",
        parameters=layers * a_layer + tables * model.vocab_size * width,
        layers=layers,
        residual=2 * seq_len * width,
        ffn=2 * seq_len * model.ffn_size / mesh.tp,
        logits=seq_len * model.vocab_size / mesh.tp,
        normalizers=4 * seq_len * model.num_heads / mesh.tp,
    )


def peak_bytes(sizes: Sizes) -> float:
    """Of memory: states, gathered weights, the summed float32 gradients of micro-batches, activations."""
    states = STATE_BYTES * sizes.parameters / (sizes.tp * sizes.dp)
    gathered = 2 * sizes.parameters / sizes.tp
    summed = 4 * sizes.parameters / sizes.tp if sizes.micro_batches > 1 else 0
    return states + gathered + summed + _activation_bytes(sizes)


def _activation_bytes(sizes: Sizes) -> float:
    """Kept for the backward pass, of all micro-batches that are under way in 1F1B."""
    under_way = min(sizes.pp - sizes.stage, sizes.micro_batches)
    attention = 4 * sizes.residual / sizes.tp + sizes.normalizers  # q, k, v and the output
    layer = 4 * sizes.kept_residual + attention + 3 * sizes.ffn  # two residuals and norms; gate, up and their product
    loss = 6 * sizes.logits + sizes.kept_residual + sizes.residual if sizes.is_last else 0  # in float32 and bfloat16
    if sizes.recomputes:
        return sizes.layers * under_way * sizes.kept_residual + max(layer, loss)
    return sizes.layers * under_way * layer + loss


def wire_bytes(sizes: Sizes) -> float:
    """Of collectives, by rings, and sent to and received from the stages beside."""
    gathered = ring_bytes("AllGather", 2 * sizes.parameters / sizes.tp, sizes.dp)
    scattered = ring_bytes("ReduceScatter", 4 * sizes.parameters / sizes.tp, sizes.dp)
    summed = ring_bytes("AllReduce", _sums(sizes) * sizes.micro_batches * sizes.residual, sizes.tp)
    neighbours = (not sizes.is_first) + (not sizes.is_last)
    return gathered + scattered + summed + 2 * neighbours * sizes.micro_batches * sizes.kept_residual


def _sums(sizes: Sizes) -> int:
    """Residuals that the tp ranks sum for a micro-batch; with sequence parallelism each is a scatter and a gather.

    Four a layer, one of them again when it is recomputed, the embedding, and the gradient of the head's input. The
    compiler has a stage send the gradient of its own input before it is summed: the stage before sums it.
    """
    inside = (5 if sizes.recomputes else 4) * sizes.layers
    return inside + sizes.is_first + sizes.is_last + (not sizes.is_last) - (not sizes.is_first)


def gathered_again_bytes(sizes: Sizes) -> float:
    """More of them if the inputs of the matmuls are kept split, as the peak's bound has it: each is gathered twice."""
    inputs = 2 * sizes.layers + sizes.is_last if sizes.sequence_parallel else 0
    return ring_bytes("AllGather", inputs * sizes.micro_batches * sizes.residual, sizes.tp)
