"""Child: the matmuls of a training step alone, by torch into buffers that stay."""

from __future__ import annotations

from bench.child import Work, serve
from bench.sizes import SIZES


def load(spec: dict):
    """Spec: size, threads."""
    import torch

    size = SIZES[spec["size"]]

    def build() -> Work:
        torch.set_num_threads(spec["threads"])
        products = []
        for inputs, outputs, count in size.matmuls:
            x = torch.randn(size.num_tokens, inputs)
            buffers = torch.empty(size.num_tokens, outputs), torch.empty_like(x), torch.empty(outputs, inputs)
            for _ in range(count):
                weight, dout = torch.randn(outputs, inputs), torch.randn(size.num_tokens, outputs)
                products += zip(((x, weight.t()), (dout, weight), (dout.t(), x)), buffers)

        def work(index: int) -> float:
            for (left, right), buffer in products:
                torch.mm(left, right, out=buffer)
            return float(buffer[0, 0])

        return work

    return build


if __name__ == "__main__":
    serve(load)
