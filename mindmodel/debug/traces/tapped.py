"""A training step that gives, beside its results, every activation, gradient and updated weight.

A tap is an identity behind a Cell with two Parameters that nothing is computed from. Its backward pass names the
activation as the gradient by the one, and the activation's gradient as the gradient by the other: automatic
differentiation carries both out of the step. Nothing that the step computes is touched; its loss and weights are
bitwise those of the step without taps.
"""

from __future__ import annotations

import functools
from typing import Mapping, Sequence

import mindspore as ms
import ml_dtypes
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from mindmodel.debug.traces.inputs import Inputs, filled_up
from mindmodel.debug.traces.trace import LOGITS, Trace, flow, places
from mindmodel.errors import GraphError, first_line
from mindmodel.models.decoder import DTYPES, Decoder
from mindmodel.parallel.runtime import Runtime
from mindmodel.recipe.schema import Recipe
from mindmodel.train.build import Built, build
from mindmodel.train.init_from import initial_weights
from mindmodel.train.state import hold_first
from mindmodel.train.step import TrainStep


class Keep(nn.Cell):
    """An identity: by `value` the gradient is x, by `gradient` it is the gradient by x.

    Inputs: x, value and gradient, all [T, D]. Outputs: x.
    """

    def construct(self, x, value, gradient):
        return x

    def bprop(self, x, value, gradient, out, dout):
        return dout, x, dout


class Tapped(nn.Cell):
    """A Cell whose output is kept. Inputs and outputs: as the Cell's."""

    def __init__(self, cell: nn.Cell, place: str, empty: Tensor):
        super().__init__(auto_prefix=False)
        self.cell, self.keep = cell, Keep()
        self.value = Parameter(empty, name=f"{place}/value")
        self.gradient = Parameter(empty, name=f"{place}/gradient")

    def construct(self, *inputs):
        return self.keep(self.cell(*inputs), self.value, self.gradient)


class TappedBranch(Tapped):
    """A norm at a branch, of which what the branch gets is kept. Inputs and outputs: as the Cell's."""

    def construct(self, x):
        x, branch = self.cell(x)
        return x, self.keep(branch, self.value, self.gradient)


BRANCHES = ("attention_norm", "mlp_norm")
"""Names of the Cells that have two outputs; the others have one."""


def _child(cell: nn.Cell, name: str) -> nn.Cell:
    return cell[int(name)] if name.isdigit() else getattr(cell, name)


def tap(decoder: Decoder, columns: Mapping[str, int], rows: int, dtype: str) -> list[Tapped]:
    """Put a tap behind the Cell of every place; the decoder's parameters keep their names.

    Args:
        columns: of the activation at each place, what is within a layer before the layer.
        rows: of all activations.
        dtype: of all activations.
    """
    names = [(parameter, parameter.name) for parameter in decoder.get_parameters()]
    taps = []
    for place, count in columns.items():
        *path, name = place.split(".")
        holder = functools.reduce(_child, path, decoder)
        empty = Tensor(np.zeros((rows, count), np.float32), DTYPES[dtype])
        tapped = TappedBranch if name in BRANCHES else Tapped
        taps.append(tapped(_child(holder, name), place, empty))
        if name.isdigit():
            holder[int(name)] = taps[-1]
        else:
            setattr(holder, name, taps[-1])
    for parameter, name in names:
        parameter.name = name
    return taps


class TappedStep(TrainStep):
    """A training step with taps.

    Inputs: as TrainStep's.
    Outputs: loss and gradient norm; number of labels that count; gradients of the sum over them by the weights; for
    each micro-batch in turn all activations, then all of their gradients; logits of each micro-batch.
    """

    def __init__(self, built: Built, recipe: Recipe, taps: Sequence[Tapped]):
        super().__init__(built.step.network, built.optimizer, recipe.train, recipe.parallel.micro_batches)
        self.head = built.decoder.head
        self.num_weights, self.num_taps = len(built.optimizer.parameters), len(taps)
        kept = [tap.value for tap in taps] + [tap.gradient for tap in taps]
        weights = ParameterTuple([*built.optimizer.parameters, *kept])
        self.grad = ms.value_and_grad(self.network, None, weights=weights, has_aux=True)

    def add(self, total, part):
        """Gradients by the weights are summed over the micro-batches; what the taps give is put side by side."""
        if len(total) == 0:
            return part
        count = self.num_weights
        return self.map(self.plus, total[:count], part[:count]) + total[count:] + part[count:]

    def construct(self, ids, labels, lr):
        sums, grads = self.accumulate(ids, labels)
        grads, kept = grads[:self.num_weights], grads[self.num_weights:]
        logits = ()
        for i in range(self.micro_batches):
            last_activation = (2 * i + 1) * self.num_taps - 1
            logits = logits + (self.head(kept[last_activation]),)
        num_labels = self.count(labels)
        results = self.update(ops.depend(sums[0], logits), grads, num_labels, lr)
        return results[0], results[1], num_labels, grads, kept, logits


def tapped_step(recipe: Recipe, built: Built) -> TappedStep:
    """The training step of a recipe with taps at all places; of the decoder that was built, which then has them too."""
    rows = built.rows * recipe.data.seq_len // recipe.parallel.micro_batches
    columns = {place: count for place, count in places(recipe.model).items() if place != LOGITS}
    taps = tap(built.decoder, columns, rows, recipe.train.compute_dtype)
    return TappedStep(built, recipe, taps).set_train()


class TracedSteps:
    """Steps of a recipe, from the weights that a run of it begins with.

    Args:
        recipe: of one device, with `model.vocab_size` filled in.

    Raises:
        CheckpointError, ConversionError: if train.init_from cannot be read or is of another architecture.
    """

    def __init__(self, recipe: Recipe, runtime: Runtime) -> None:
        self._recipe, self._runtime = recipe, runtime
        self._built = build(recipe)
        initial = None if recipe.train.init_from is None else initial_weights(recipe).weights
        hold_first(self._built, recipe, 0, initial)
        self._step = tapped_step(recipe, self._built)

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """By name, as they are now."""
        return {parameter.name: parameter.asnumpy() for parameter in self._built.optimizer.parameters}

    def trace(self, inputs: Inputs, source: str) -> Trace:
        """The next step, and all that it computes.

        Args:
            source: what is traced, for the reader.

        Raises:
            GraphError: if it does not compile.
        """
        whole = filled_up(inputs.batch, self._built.rows)
        outputs = self._run(Tensor(whole.ids), Tensor(whole.labels), Tensor(inputs.lr, ms.float32))
        loss, norm = (float(output.asnumpy()) for output in outputs[:2])
        return Trace(
            source=source,
            dtype=self._recipe.train.compute_dtype,
            loss=loss,
            grad_norm=norm,
            lr=inputs.lr,
            batch=inputs.batch,
            tensors={**_arrays(self._built, inputs.batch.ids.size, *outputs[2:]), "weight": self.weights},
        )

    def _run(self, *arguments: Tensor) -> tuple:
        try:
            with self._runtime.cache.compiling():
                return self._step(*arguments)
        except (AttributeError, NameError, RuntimeError, TypeError, ValueError) as error:
            raise GraphError(
                f"the training step does not compile: {first_line(error)}. `mindmodel debug graph` lists all operators "
                "without a kernel; --debug shows all."
            ) from error


def trace_step(recipe: Recipe, inputs: Inputs, runtime: Runtime, source: str) -> Trace:
    """The first step; arguments and errors are those of TracedSteps."""
    return TracedSteps(recipe, runtime).trace(inputs, source)


def _arrays(built: Built, rows: int, num_labels, grads, kept, logits) -> dict[str, dict[str, np.ndarray]]:
    """Of a tapped step's outputs, by kind and place; rows that fill up the batch are cut off."""
    scale, weights = 1.0 / float(num_labels.asnumpy()), built.optimizer.parameters
    taken = [place for place in flow(len(built.decoder.layers)) if place != LOGITS]

    def of_taps(first: int) -> list[np.ndarray]:
        return [_side_by_side(kept[first + i::2 * len(taken)])[:rows] for i in range(len(taken))]

    return {
        "activation": {**dict(zip(taken, of_taps(0))), LOGITS: _side_by_side(logits)[:rows]},
        "activation_grad": {place: _times(array, scale) for place, array in zip(taken, of_taps(len(taken)))},
        "weight_grad": {weight.name: _times(grad.asnumpy(), scale) for weight, grad in zip(weights, grads)},
    }


def _side_by_side(parts: Sequence[Tensor]) -> np.ndarray:
    """The rows of all micro-batches. MindSpore's NumPy type of bfloat16 is not the one that others know."""
    rows = np.concatenate([part.asnumpy() for part in parts]) if len(parts) > 1 else parts[0].asnumpy()
    return rows.view(ml_dtypes.bfloat16) if rows.dtype.name == "bfloat16" else rows


def _times(array: np.ndarray, scale: float) -> np.ndarray:
    """In float32, so that nothing is rounded to the compute dtype once more."""
    return array.astype(np.float32) * np.float32(scale)
