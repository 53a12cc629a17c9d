"""The step of one rank of many: what it sums over the others, and how its micro-batches add up."""

from __future__ import annotations

from typing import Container

from mindspore import Parameter, ParameterTuple, Tensor
from mindspore import dtype as mstype
from mindspore import nn, ops

from mindmodel.layers.kernels import device_kernels
from mindmodel.parallel.apply import gradient_shares, in_micro_batches, lay_out, see_activations
from mindmodel.parallel.local_layers import SQUARES
from mindmodel.parallel.mesh import mesh_of
from mindmodel.parallel.plan import Plan
from mindmodel.recipe.schema import ParallelSection, TrainSection
from mindmodel.train.norms import Held
from mindmodel.train.optim import AdamW
from mindmodel.train.step import TrainStep


class GlobalTotals(nn.Cell):
    """Totals over all ranks: slices of gradients that several ranks hold count once.

    Args:
        shares: for every parameter what this rank's slice of its gradient counts: one over the number of ranks that
            hold it.
        loss_copies: how many ranks hold the cross entropy; on the others it is zero.

    Inputs: cross entropy, this rank's slices of the gradients (tuple).
    Outputs: cross entropy, sum of all squares of the gradients; the same on all ranks.
    """

    def __init__(self, shares: tuple[float, ...], loss_copies: int):
        super().__init__()
        self.shares, self.loss_copies = shares, loss_copies
        self.square_sum = device_kernels().square_sum()
        self.all_reduce, self.map = ops.AllReduce(), ops.HyperMap()

    def square(self, grad, share):
        """What one gradient counts."""
        square = self.square_sum((grad,))
        return square if share == 1.0 else square * share

    def construct(self, entropy, grads):
        squares = self.map(self.square, grads, self.shares)
        # of the operands of one AddN the pipeline takes out those of other stages; from a chain of sums it takes all
        total = self.all_reduce(ops.addn(squares))
        entropy = ops.depend(entropy, grads)  # else the pipeline's schedule finds no end of the backward pass
        return self.all_reduce(entropy) / self.loss_copies, total


class OnlyLoss(nn.Cell):
    """A network's two outputs as one, for MindSpore's micro-batching adds up a single tensor.

    Args:
        network: gives the sum to differentiate, and the cross entropy that is reported.
        differ: whether the two differ.

    Inputs: as the network's. Outputs: the cross entropy, with the gradient of the sum to differentiate.
    """

    def __init__(self, network: nn.Cell, differ: bool):
        super().__init__(auto_prefix=False)
        self.network, self.differ = network, differ

    def construct(self, ids, labels):
        total, entropy = self.network(ids, labels)
        if self.differ:
            total = total + ops.stop_gradient(entropy - total)
        return total


class SumOverRanks(nn.Cell):
    """Inputs: tensors (tuple). Outputs: their sums over all ranks."""

    def __init__(self):
        super().__init__()
        self.all_reduce, self.map = ops.AllReduce(), ops.HyperMap()

    def construct(self, tensors):
        return self.map(self.all_reduce, tensors)


class DataParallelStep(TrainStep):
    """The step of a rank that holds the whole model and a share of the global batch, for devices without auto-parallel.

    Cross entropy, labels and gradients are sums until they are added up, so every label counts alike, on whatever rank.

    Inputs: ids and labels int32 [sequences of this rank, S], lr float32 scalar. Outputs: as TrainStep's, of the whole
    batch but for the activations' sums of squares, which are this rank's.
    """

    def __init__(self, network: nn.Cell, optimizer: AdamW, train: TrainSection, micro_batches: int):
        super().__init__(network, optimizer, train, micro_batches)
        self.over_ranks = SumOverRanks()

    def construct(self, ids, labels, lr):
        own, grads = self.accumulate(ids, labels)
        num_labels = ops.cast(labels >= 0, mstype.float32).sum()
        sums = self.over_ranks((ops.stack((own[0], num_labels)),) + grads)
        found = self.update(sums[0][0], sums[1:], ops.maximum(sums[0][1], 1.0), lr)
        return found + own[1:]


class RankStep(TrainStep):
    """The step of one rank of a mesh.

    The network has one output: of several MindSpore finds no loss, and the gradients come out dp times too large. No
    input goes anywhere but into the network: else MindSpore's pipeline does not find it. So `num_labels` and `lr` are
    parameters, set by `set_scalars` before every step.

    Args:
        seen: parameters whose gradients are the activations' sums of squares.

    Inputs: ids and labels int32 [sequences, S]. Outputs: as TrainStep's; sums of squares are those of this rank's
    slices of its stage's parameters, and of all of that stage's activations.
    """

    def __init__(
        self, network: nn.Cell, optimizer: AdamW, train: TrainSection, totals: nn.Cell, seen: tuple[Parameter, ...]
    ):
        super().__init__(network, optimizer, train, 1, totals)
        self.num_weights, self.sees, self.seen = len(optimizer.parameters), len(seen) > 0, seen
        self.weights = ParameterTuple([*optimizer.parameters, *seen])
        self.num_labels = Parameter(Tensor(1.0, mstype.float32), name="num_labels", requires_grad=False)
        self.lr = Parameter(Tensor(0.0, mstype.float32), name="lr", requires_grad=False)
        self.grad = ops.GradOperation(get_by_list=True)

    def set_scalars(self, num_labels: int, lr: float) -> None:
        """Labels of the global batch that count, and the learning rate, for the next step."""
        self.num_labels.set_data(Tensor(max(num_labels, 1), mstype.float32))
        self.lr.set_data(Tensor(lr, mstype.float32))

    def held(self, in_graph: Container[str]) -> Held:
        """What of the outputs' sums of squares this rank has.

        Args:
            in_graph: names of the parameters of the compiled step: those of this rank's stage.
        """
        counts = zip(self.optimizer.parameters, self.totals.shares)
        share = 1.0 / self.totals.loss_copies
        return Held(
            parameters={parameter.name: count for parameter, count in counts if parameter.name in in_graph},
            activations={seen.name.removeprefix(SQUARES): share for seen in self.seen if seen.name in in_graph},
        )

    def construct(self, ids, labels):
        loss = self.network(ids, labels)
        grads = self.grad(self.network, self.weights)(ids, labels)
        return self.updated(loss, grads)

    def updated(self, loss, grads):
        """What a step gives, from the gradients of the weights and of what is seen."""
        num_labels, lr = self.num_labels.value(), self.lr.value()
        if not self.sees:
            return self.update(loss, grads, num_labels, lr)
        squares = ops.concat(grads[self.num_weights:])
        return self.update(loss, grads[:self.num_weights], num_labels, lr) + (squares,)


class AccumulatingStep(RankStep):
    """A step whose micro-batches MindSpore schedules: gradients are summed in place before the ranks exchange them.

    Args:
        network: MindSpore's wrapper for micro-batches around a network with one output.
        sharded: whether MindSpore cuts the optimizer's states, so that a rank's gradients are its slices.

    Inputs, outputs: as RankStep's.
    """

    def __init__(
        self,
        network: nn.Cell,
        optimizer: AdamW,
        train: TrainSection,
        totals: nn.Cell,
        seen: tuple[Parameter, ...],
        sharded: bool,
    ):
        super().__init__(network, optimizer, train, totals, seen)
        self.sharded = sharded
        self.accu_grads = self.weights.clone(prefix="accu_grads", init="zeros")  # MindSpore finds them by this name
        self.outlives_infinity = train.check_finite == "skip"
        self.finite, self.map = optimizer.update.finite, ops.HyperMap()

    def construct(self, ids, labels):
        loss = self.network(ids, labels)
        grads = self.grad(self.network, self.weights)(ids, labels)
        summed = ops.depend(self.accu_grads, grads)
        found = self.updated(loss, grads if self.sharded else summed)
        cleared = self.map(ops.partial(self.clear, found[0]), summed)
        return (ops.depend(found[0], cleared),) + found[1:]

    def clear(self, loss, total):
        """Make a sum zero, from its own values: a zero tensor of the graph would be as large again."""
        total = ops.depend(total, loss)
        if self.outlives_infinity:
            return ops.assign(total, self.finite(total, Tensor(0.0, mstype.float32)))
        return ops.assign_sub(total, total)


def laid_out_step(
    network: nn.Cell,
    optimizer: AdamW,
    train: TrainSection,
    parallel: ParallelSection,
    plan: Plan,
    rank: int,
    sees: bool,
) -> RankStep:
    """The training step that a rank of a mesh compiles.

    Args:
        network: for one device, with two outputs; its operators are cut here.
        sees: whether the sums of squares of its activations are wanted.

    Raises:
        LayoutError: if plan and network do not fit.
    """
    lay_out(network, plan, parallel, rank, train.compute_dtype)
    seen = see_activations(network, plan, parallel) if sees else ()
    mesh = mesh_of(parallel)
    totals = GlobalTotals(gradient_shares(optimizer.parameters, plan, parallel, rank), mesh.stage_size)
    single = OnlyLoss(network, train.z_loss > 0)
    if parallel.micro_batches == 1 and mesh.pp == 1:
        return RankStep(single, optimizer, train, totals, seen)
    sharded = parallel.shard_optimizer != "none"
    return AccumulatingStep(in_micro_batches(single, parallel), optimizer, train, totals, seen, sharded)


def single_loss(step: RankStep) -> OnlyLoss:
    """What a step differentiates, for one micro-batch."""
    return step.network.network if isinstance(step, AccumulatingStep) else step.network
