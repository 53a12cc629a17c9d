"""Layers as one rank computes them, with collectives of its own, where the compiler's partition takes more.

Each stands in place of a Cell of the model, by a rule of a plan. What it computes over other ranks is an `ops.Morph`: a
function of this rank's slices, expanded before differentiation. The gradient of a tensor of which several ranks hold
the whole arrives in a Morph as this rank's part of a sum, and is handed on as one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Callable

from mindspore import Parameter, Tensor
from mindspore import dtype as mstype
from mindspore import nn, ops
from mindspore.communication import create_group
from mindspore.ops.auto_generate import Dot

from mindmodel.parallel.mesh import Axis, Mesh, names
from mindmodel.parallel.plans.decoder import most_logit_slices, sums_in_compute_dtype
from mindmodel.recipe.schema import ParallelSection

SQUARES = "squares."
"""How the names of parameters begin whose gradients are sums of squares."""


@dataclass(frozen=True, kw_only=True)
class ThisRank:
    """A rank in its mesh.

    Attributes:
        dtype: of its products.
        groups: of ranks that MindSpore knows by now, by the axes in which they differ.
    """

    mesh: Mesh
    rank: int
    parallel: ParallelSection
    dtype: Any
    groups: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def collective(self, kind: Callable[..., ops.Primitive], axis: Axis, *settings: Any) -> ops.Primitive:
        """A collective of the ranks that differ from this one in these axes only."""
        label = "-".join(names(axis))
        if label not in self.groups:
            self.groups[label] = self.mesh.group(self.rank, axis)
            create_group(f"{label}-{self.groups[label][0]}", list(self.groups[label]))
        ranks = self.groups[label]
        return kind(*settings, f"{label}-{ranks[0]}").add_prim_attr("group_rank_ids", ranks)

    def index(self, axis: str) -> int:
        """Of this rank along an axis."""
        return self.mesh.coordinates(self.rank)[axis]


class LocalLayer(nn.Cell):
    """A Cell whose operators see this rank's slices; only a Morph among them is cut by a plan."""


class VocabularyOverTp(LocalLayer):
    """What the layers at both ends share, whose weight's rows are cut over tp."""

    def __init__(self, here: ThisRank):
        super().__init__()
        self.index, self.shared, self.weight = here.index("tp"), here.mesh.tp > 1, weight_layer(here)
        if self.shared:
            self.gather = here.collective(ops.AllGather, "tp")
            self.scatter = here.collective(ops.ReduceScatter, "tp", "sum")
            self.sum, self.max = (here.collective(ops.AllReduce, "tp", kind) for kind in ("sum", "max"))
        self.relu, self.least, self.equal = ops.ReLU(), ops.Minimum(), ops.Equal()

    def places(self, ids, num_rows):
        """Rows of this rank's slice, and whether these are the ids'; both as ids."""
        place = ids - self.index * num_rows
        inside = self.least(self.relu(place), num_rows - 1)
        return inside, self.equal(place, inside)

    def over_tp(self, x):
        """A sum over the ranks of tp."""
        return self.sum(x) if self.shared else x


def _same(first):
    return first


class LogitsInSlices(VocabularyOverTp):
    """The rows of numbers that the loss needs of the logits; these are in float32 in slices, one after the other.

    With recompute the logits are not kept for the backward pass but multiplied again.

    Args:
        replaced: what computes the same on one device.

    Inputs: hidden [T, D], weight float32 [V, D], labels int32 [T].
    Outputs: log of the softmax denominator, logit of the label (0 where that is none); both float32 [T, 1].
    """

    def __init__(self, replaced: nn.Cell, here: ThisRank):
        super().__init__(here)
        keeps_tokens = here.parallel.gathered_tokens == "kept"
        self.tokens = TokensOverTp(here) if keeps_tokens else None
        self.scatters = here.parallel.sequence_parallel and not keeps_tokens
        self.again = here.parallel.recompute != "none"
        self.most_slices = most_logit_slices(here.parallel)
        self.product, self.times = ops.MatMul(transpose_b=True), ops.MatMul()
        self.of_weight = ops.MatMul(transpose_a=True)
        self.largest, self.total = ops.ReduceMax(keep_dims=True), ops.ReduceSum(keep_dims=True)
        self.pick, self.one_hot, self.join = ops.GatherD(), ops.OneHot(), ops.Concat(0)
        self.on, self.off = Tensor(1.0, mstype.float32), Tensor(0.0, mstype.float32)
        self.rows = ops.Morph(self.forward, self.shapes, self.dtypes, self.backward)

    def shapes(self, hidden, weight, labels):
        """Of the outputs, and of logits that are kept."""
        rows = (labels[0], 1), (labels[0], 1)
        return rows if self.again else (*rows, (labels[0], weight[0]))

    def dtypes(self, hidden, weight, labels):
        """Of the outputs, and of logits that are kept."""
        return (mstype.float32,) * 2 if self.again else (mstype.float32, mstype.float32, hidden)

    def slice_size(self, num_rows):
        """Rows whose logits are in float32 at a time."""
        return num_rows // math.gcd(num_rows, self.most_slices)

    def logits(self, source, weight, begin, end, before):
        """Of a slice, from kept logits or from hidden; each waits for the one before, else all are there at once."""
        part = ops.depend(source, before)[begin:end]
        return self.product(part, weight) if self.again else part

    def of_slice(self, logits, labels):
        """Both numbers of the rows of a slice."""
        x = ops.cast(logits, mstype.float32)
        largest = self.largest(x, 1)
        if self.shared:
            largest = self.max(largest)
        log_sum = ops.log(self.over_tp(self.total(ops.exp(x - largest), 1))) + largest
        inside, there = self.places(labels.reshape((-1, 1)), logits.shape[1])
        return log_sum, self.over_tp(self.pick(x, 1, inside) * ops.cast(there, mstype.float32))

    def gradient_of_slice(self, logits, labels, log_sum, of_log_sum, of_picked):
        """Of the logits of a slice, in their dtype."""
        softmax, size = ops.exp(ops.cast(logits, mstype.float32) - log_sum), logits.shape[1]
        hot = self.one_hot(labels - self.index * size, size, self.on, self.off)
        return ops.cast(softmax * of_log_sum + hot * of_picked, logits.dtype)

    def forward(self, hidden, weight, labels):
        """This rank's rows."""
        if self.scatters:
            hidden = self.gather(hidden)
        source = hidden if self.again else self.product(hidden, weight)
        size, log_sums, picks, before = self.slice_size(hidden.shape[0]), (), (), labels
        for begin in range(0, hidden.shape[0], size):
            end = begin + size
            log_sum, before = self.of_slice(self.logits(source, weight, begin, end, before), labels[begin:end])
            log_sums, picks = log_sums + (log_sum,), picks + (before,)
        outputs = self.join(log_sums), self.join(picks)
        return outputs if self.again else outputs + (source,)

    def backward(self, hidden, weight, labels, outputs, gradients):
        """Gradients of hidden and weight."""
        of_log_sum, of_picked = self.over_tp(gradients[0]), self.over_tp(gradients[1])
        hidden = ops.depend(hidden, gradients[0])
        if self.scatters:
            hidden = self.gather(hidden)
        source = hidden if self.again else outputs[2]
        size, parts, before = self.slice_size(hidden.shape[0]), (), of_log_sum
        for begin in range(0, hidden.shape[0], size):
            end = begin + size
            logits = self.logits(source, weight, begin, end, before)
            own = ops.depend(labels, before)[begin:end], outputs[0][begin:end]  # else all targets are made at once
            before = self.gradient_of_slice(logits, *own, of_log_sum[begin:end], of_picked[begin:end])
            parts = parts + (before,)
        gradient = self.join(parts)
        of_hidden = self.times(gradient, weight)
        if self.scatters:
            of_hidden = self.scatter(of_hidden)
        return of_hidden, self.of_weight(gradient, hidden), ops.zeros_like(labels)

    def construct(self, hidden, weight, labels):
        if self.tokens is not None:
            hidden = self.tokens(hidden)
        outputs = self.rows(hidden, self.weight(weight), labels)
        return outputs[0], outputs[1]


class TokensOverTp(LocalLayer):
    """All tokens of sequences that are cut over tp; gathered again in the backward pass where a plan says so.

    Inputs: x [T, D]. Outputs: as x.
    """

    def __init__(self, here: ThisRank):
        super().__init__()
        self.gather = here.collective(ops.AllGather, "tp")
        self.tokens = ops.Morph(self.forward, _same, _same)

    def forward(self, x):
        """All ranks' tokens from this rank's."""
        return self.gather(x)

    def construct(self, x):
        return self.tokens(x)


class NormApart(nn.Cell):
    """Not fused with the addition before it. Interface: ResidualNormAscend's.

    Where weights are gathered again for the backward pass, a norm that is computed again would have that addition wait
    for a gradient, which waits for it.
    """

    def __init__(self, replaced: nn.Cell, here: ThisRank):
        super().__init__()
        self.rms_norm = replaced.rms_norm

    def construct(self, x, weight):
        return x, self.rms_norm(ops.depend(x, weight), ops.cast(weight, x.dtype))[0]


class WeightInDtype(LocalLayer):
    """A weight in the dtype of products. Inputs: weight float32. Outputs: as the weight, in that dtype."""

    def __init__(self, here: ThisRank):
        super().__init__()
        self.model_dtype = here.dtype

    def construct(self, weight):
        return ops.cast(weight, self.model_dtype)


class WeightOverDp(WeightInDtype):
    """The same from the slices of all ranks that hold it; its gradient is summed over them in that dtype."""

    def __init__(self, here: ThisRank):
        super().__init__(here)
        self.gather = here.collective(ops.AllGather, ("dp", "cp"))
        self.scatter = here.collective(ops.ReduceScatter, ("dp", "cp"), "sum")
        self.whole = ops.Morph(self.forward, _same, self.dtype, self.backward)

    def dtype(self, weight):
        """Of the output."""
        return self.model_dtype

    def forward(self, weight):
        """The whole from this rank's slice."""
        return self.gather(ops.cast(weight, self.model_dtype))

    def backward(self, weight, output, gradient):
        """This rank's slice of the sum."""
        return (ops.cast(self.scatter(gradient), mstype.float32),)

    def construct(self, weight):
        return self.whole(weight)


def weight_layer(here: ThisRank) -> nn.Cell:
    """What makes a float32 weight one of a product."""
    return WeightOverDp(here) if sums_in_compute_dtype(here.parallel) else WeightInDtype(here)


class LinearOverRanks(nn.Cell):
    """x w', of tokens and of a weight that may first be gathered. Interface: LinearAscend's."""

    def __init__(self, replaced: nn.Cell, here: ThisRank, tokens: bool):
        super().__init__()
        self.matmul, self.weight = replaced.matmul, weight_layer(here)
        self.tokens = TokensOverTp(here) if tokens else None

    def construct(self, x, weight):
        if self.tokens is not None:
            x = self.tokens(x)
        return self.matmul(x, self.weight(weight))


class EmbeddingOverRanks(VocabularyOverTp):
    """Rows of a table that is cut over tp; they are on the wire in the model's dtype, gradients are summed in float32.

    Inputs, outputs: as EmbeddingByGather.
    """

    def __init__(self, replaced: nn.Cell, here: ThisRank):
        super().__init__(here)
        self.scatters = here.parallel.sequence_parallel
        self.look_up, self.sum_rows = ops.Gather(), ops.UnsortedSegmentSum()
        self.rows = ops.Morph(self.forward, self.shape, self.dtype, self.backward)

    def shape(self, ids, table):
        """Of the output."""
        return ids[0], table[1]

    def dtype(self, ids, table):
        """Of the output."""
        return table

    def forward(self, ids, table):
        """This rank's tokens."""
        inside, there = self.places(ids, table.shape[0])
        rows = self.look_up(table, inside, 0) * ops.cast(there.reshape((-1, 1)), table.dtype)
        return self.scatter(rows) if self.scatters else self.over_tp(rows)

    def backward(self, ids, table, output, gradient):
        """Gradient of this rank's slice of the table."""
        gradient = self.gather(gradient) if self.scatters else self.over_tp(gradient)
        inside, there = self.places(ids, table.shape[0])
        rows = ops.cast(gradient, mstype.float32) * ops.cast(there.reshape((-1, 1)), mstype.float32)
        return ops.zeros_like(ids), ops.cast(self.sum_rows(rows, inside, table.shape[0]), table.dtype)

    def construct(self, ids, table):
        return self.rows(ids, self.weight(table))


class Seen(LocalLayer):
    """A Cell whose output's sum of squares, over all ranks and micro-batches, is the gradient of a parameter.

    So it is accumulated over micro-batches and summed over the ranks of a stage as gradients are.

    Args:
        cell: of one input and one output.
        part: what the parameter, float32 [1], is named after.
        copies: how many ranks have the same slice of the output.
    """

    def __init__(self, cell: nn.Cell, part: str, copies: int):
        super().__init__(auto_prefix=False)
        self.cell, self.share, self.dot = cell, 1.0 / copies, Dot()
        self.squares = Parameter(Tensor([0.0], mstype.float32), name=f"{SQUARES}{part}")
        self.same = ops.Morph(self.forward, self.first, self.first, self.backward)

    def first(self, x, squares):
        """Shape or dtype of the output."""
        return x

    def forward(self, x, squares):
        """The same."""
        return x

    def backward(self, x, squares, output, gradient):
        """This rank's part of the sum of squares; x waits for its gradient, else there are float32 copies of all."""
        flat = ops.cast(ops.depend(x, gradient), mstype.float32).reshape((-1,))
        return gradient, self.dot(flat, flat).reshape((1,)) * self.share

    def construct(self, x):
        x = self.cell(x)
        return self.same(x, self.squares) if self.training else x  # a forward pass over stages does not compile with it


LAYERS: dict[str, Callable[[nn.Cell, ThisRank], nn.Cell]] = {
    "embedding": EmbeddingOverRanks,
    "logits": LogitsInSlices,
    "norm apart": NormApart,
    "linear": partial(LinearOverRanks, tokens=False),
    "linear of tokens": partial(LinearOverRanks, tokens=True),
}
"""By the names that plans use."""
