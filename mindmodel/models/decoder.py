"""The decoder: the skeleton that every family shares. Single device, no rank, no mesh."""

from __future__ import annotations

import zlib

import numpy as np
from mindspore import Tensor
from mindspore import dtype as mstype
from mindspore import nn, ops

from mindmodel.layers.attention import Attention
from mindmodel.layers.embedding import Embedding
from mindmodel.layers.kernels import device_kernels
from mindmodel.layers.linear import Linear
from mindmodel.layers.loss import HeadLoss
from mindmodel.layers.mlp import MLP
from mindmodel.layers.norm import ResidualNorm, RMSNorm
from mindmodel.layers.rope import rope_tables
from mindmodel.recipe.schema import ModelSection

DTYPES = {"float32": mstype.float32, "bfloat16": mstype.bfloat16}


class Block(nn.Cell):
    """Attention and feed-forward layer, each behind a norm and added to the residual.

    Inputs: x [B S, hidden_size]. Outputs: [B S, hidden_size].
    """

    def __init__(self, model: ModelSection, cos: np.ndarray, sin: np.ndarray):
        super().__init__()
        self.attention_norm = ResidualNorm(model.hidden_size, model.norm_eps)
        self.attention = Attention(model, cos, sin)
        self.mlp_norm = ResidualNorm(model.hidden_size, model.norm_eps)
        self.mlp = MLP(model)
        self.attention_add, self.mlp_add = ops.Add(), ops.Add()

    def construct(self, x):
        x, branch = self.attention_norm(x)
        x = self.attention_add(x, self.attention(branch))
        x, branch = self.mlp_norm(x)
        return self.mlp_add(x, self.mlp(branch))


class Decoder(nn.Cell):
    """Embedding, blocks, final norm and output layer.

    Args:
        model: architecture with `vocab_size` filled in.
        seq_len: tokens of every sequence.
        compute_dtype: `float32` or `bfloat16`, of matmuls and activations.

    Inputs: ids int32 [B, S]. Outputs: logits [B S, vocab_size] in the compute dtype.
    Source: checked against transformers' `LlamaForCausalLM` and `Qwen3ForCausalLM`.
    """

    def __init__(self, model: ModelSection, seq_len: int, compute_dtype: str = "float32"):
        super().__init__()
        cos, sin = rope_tables(model, seq_len)
        self.embedding = Embedding(model.vocab_size, model.hidden_size, DTYPES[compute_dtype])
        self.layers = nn.CellList([Block(model, cos, sin) for _ in range(model.num_layers)])
        self.norm = RMSNorm(model.hidden_size, model.norm_eps)
        self.head = Linear(model.hidden_size, model.vocab_size)
        if model.tied_embeddings:
            self.head.weight = self.embedding.weight
        for name, parameter in self.parameters_and_names():
            parameter.name = name

    def activations(self, ids):
        """What embedding, layers and norm give, each [B S, hidden_size]; the last is for the output layer."""
        x = self.embedding(ids.reshape((-1,)))
        found = (x,)
        for layer in self.layers:
            x = layer(x)
            found = found + (x,)
        return found + (self.norm(x),)

    def construct(self, ids):
        return self.head(self.activations(ids)[-1])


class DecoderLoss(nn.Cell):
    """The decoder with its loss; `gradient` false is for evaluation.

    Args:
        norms: whether the sums of squares of the decoder's activations are wanted.
        filled_up: whether there may be sequences of ignored labels alone; they do not count in these sums.

    Inputs: ids and labels int32 [B, S]; labels below zero are ignored.
    Outputs: the sum to differentiate and the cross entropy alone, both summed over the labels that count; with `norms`
    the sums of squares of the decoder's activations too, float32 [num_layers + 2].
    """

    def __init__(
        self,
        decoder: Decoder,
        vocab_size: int,
        z_loss: float = 0.0,
        gradient: bool = True,
        norms: bool = False,
        filled_up: bool = False,
    ):
        super().__init__(auto_prefix=False)
        self.decoder, self.norms, self.filled_up, self.map = decoder, norms, filled_up, ops.HyperMap()
        self.loss = HeadLoss(vocab_size, z_loss, gradient)
        self.squares = device_kernels().square_sums() if norms else None

    def construct(self, ids, labels):
        found = self.decoder.activations(ids)
        sums = self.loss(found[-1], self.decoder.head.weight, labels.reshape((-1,)))
        if not self.norms:
            return sums
        shown = ops.stop_gradient(found)
        if self.filled_up:
            shown = self.map(ops.partial(self.of_real, self.real_tokens(labels)), shown)
        return sums + (self.squares(shown),)

    def real_tokens(self, labels):
        """One for each token of a sequence that has a label, else zero: [B S, 1]."""
        labelled = ops.cast(labels >= 0, mstype.float32)
        real = ops.cast(labelled.sum(axis=1, keepdims=True) > 0, mstype.float32)
        return (ops.ones_like(labelled) * real).reshape((-1, 1))

    def of_real(self, real, x):
        """An activation, zero elsewhere."""
        return x * ops.cast(real, x.dtype)


def initial_weight(name: str, shape: tuple[int, ...], model: ModelSection, seed: int) -> np.ndarray:
    """A fresh weight, float32: ones for norms, else normal with `init_std`.

    Projections back into the residual stream are smaller by sqrt(2 num_layers), so that its variance does not grow with
    depth (GPT-2's rule). Every weight has a generator of its own, keyed by seed and name, so no layout changes it.
    """
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    generator = np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(name.encode())]))
    std = model.init_std
    if name.endswith(("attention.out.weight", "mlp.down.weight")):
        std /= (2 * model.num_layers) ** 0.5
    return generator.standard_normal(shape, np.float32) * np.float32(std)


def initialize(decoder: Decoder, model: ModelSection, seed: int) -> None:
    """Fill the decoder with fresh weights."""
    for parameter in decoder.get_parameters():
        parameter.set_data(Tensor(initial_weight(parameter.name, parameter.shape, model, seed)))
