"""Child: the matmuls of a training step alone, by MindSpore's MatMul in one graph."""

from __future__ import annotations

from bench.child import Work, serve
from bench.sizes import SIZES, recipe_of

from mindmodel.parallel.environment import prepare_environment


def load(spec: dict):
    """Spec: size, threads."""
    size = SIZES[spec["size"]]
    recipe = recipe_of(size, spec["threads"], cpu_kernels="graph")
    prepare_environment(recipe.runtime)
    import numpy as np
    from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

    from mindmodel.parallel.runtime import start_runtime

    random = np.random.default_rng(0)

    def resident(name: str, *shape: int) -> Parameter:
        return Parameter(Tensor(random.standard_normal(shape, np.float32)), name=name)

    class Matmuls(nn.Cell):
        """An element of every product is used, so that none is left out; operands differ, so that none is shared."""

        def __init__(self):
            super().__init__()
            self.forward = ops.MatMul(transpose_b=True)
            self.to_input, self.to_weight = ops.MatMul(), ops.MatMul(transpose_a=True)
            xs, weights, douts = [], [], []
            for number, (inputs, outputs, count) in enumerate(size.matmuls):
                x = resident(f"x{number}", size.num_tokens, inputs)
                for layer in range(count):
                    xs.append(x)
                    weights.append(resident(f"weight{number}.{layer}", outputs, inputs))
                    douts.append(resident(f"dout{number}.{layer}", size.num_tokens, outputs))
            self.xs, self.weights, self.douts = map(tuple, (xs, weights, douts))
            self.held = ParameterTuple([*weights, *douts, *dict.fromkeys(xs)])

        def construct(self):
            total = Tensor(np.zeros((1, 1), np.float32))
            for x, weight, dout in zip(self.xs, self.weights, self.douts):
                for product in (self.forward(x, weight), self.to_input(dout, weight), self.to_weight(dout, x)):
                    total = total + ops.slice(product, (0, 0), (1, 1))
            return total

    def build() -> Work:
        runtime = start_runtime(recipe, "matmuls")
        matmuls = Matmuls().set_train(False)
        with runtime.cache.compiling():
            matmuls.compile()
        return lambda index: float(matmuls().asnumpy().item())

    return build


if __name__ == "__main__":
    serve(load)
