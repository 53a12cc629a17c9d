"""Choosing the next token, and the loop around the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, Optional, Sequence, Union

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindmodel.errors import DataError
from mindmodel.generation.decode import CachedDecoder, DecodeStep
from mindmodel.generation.native import DecodeStepNative
from mindmodel.layers.native import library
from mindmodel.models.decoder import Decoder
from mindmodel.recipe.schema import ModelSection

PROMPT_STEP = 64  # prompts are padded to a multiple, so that few graphs are compiled


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 is greedy; higher is more random.
        top_p: only the most likely tokens that together reach this share are drawn from; 1 is off.
        seed: of the draws.
    """

    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0


def choose(logits: np.ndarray, sampling: Sampling, generator: np.random.Generator) -> np.ndarray:
    """Next token of each sequence, int32 [B], from logits [B, V].

    Source: nucleus sampling as in Holtzman et al. (arXiv 1904.09751) section 3.1.
    """
    if sampling.temperature == 0:
        return logits.argmax(axis=1).astype(np.int32)
    scaled = logits.astype(np.float64)
    probabilities = np.exp((scaled - scaled.max(axis=1, keepdims=True)) / sampling.temperature)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ordered = np.take_along_axis(probabilities, order, axis=1)
    kept = np.cumsum(ordered, axis=1) - ordered < sampling.top_p
    kept[:, 0] = True  # the most likely token may always be drawn
    cumulative = np.cumsum(np.where(kept, ordered, 0.0), axis=1)
    draws = (1 - generator.random((len(logits), 1))) * cumulative[:, -1:]  # above 0, at most the whole
    picked = (cumulative < draws).sum(axis=1, keepdims=True)
    return np.take_along_axis(order, picked, axis=1)[:, 0].astype(np.int32)


def _padded(length: int) -> int:
    return -(-length // PROMPT_STEP) * PROMPT_STEP


class Generator:
    """Continues prompts with one model; graphs are compiled at the first use.

    Args:
        decoder: with its weights.
        model: its architecture.
        vocab_size: tokens that may be chosen; rows beyond are padding.
        max_tokens: longest sequence, prompt and answer together.
        num_sequences: prompts continued at once; all of one length.
    """

    def __init__(
        self, decoder: Decoder, model: ModelSection, vocab_size: int, max_tokens: int, num_sequences: int = 1
    ) -> None:
        self._num_slots = _padded(max_tokens)
        self._prompt_graph = CachedDecoder(decoder, model, num_sequences, self._num_slots)
        self._step_graph: Union[DecodeStep, DecodeStepNative] = (
            DecodeStep(self._prompt_graph, num_sequences)
            if library.in_use() is None
            else DecodeStepNative(self._prompt_graph, model, self._num_slots)
        )
        for graph in (self._prompt_graph, self._step_graph):
            graph.set_train(False)
        self._vocab_size, self._num_sequences = vocab_size, num_sequences

    def compile(self, prompt: Sequence[int]) -> None:
        """Compile the graphs for prompts of this length, so that the first token does not seem slow.

        In PyNative mode there is nothing to compile.
        """
        if ms.get_context("mode") != ms.GRAPH_MODE:
            return
        num_new = _padded(len(prompt))
        for graph, shapes in (
            (self._prompt_graph, ((self._num_sequences, num_new), num_new, self._num_sequences)),
            (self._step_graph, (self._num_sequences, 1)),
        ):
            graph.compile(*(Tensor(np.zeros(shape, np.int32)) for shape in shapes))

    def prompt_logits(self, ids: np.ndarray) -> np.ndarray:
        """Logits [B, V] after prompts ids [B, n], with which the cache is begun."""
        length, num_new = ids.shape[1], _padded(ids.shape[1])
        padded = np.zeros((len(ids), num_new), np.int32)
        padded[:, :length] = ids
        last = np.arange(length - 1, padded.size, num_new, dtype=np.int32)
        logits = self._prompt_graph(Tensor(padded), Tensor(np.arange(num_new, dtype=np.int32)), Tensor(last))
        return logits.asnumpy()[:, : self._vocab_size]

    def next_logits(self, tokens: np.ndarray, position: int) -> np.ndarray:
        """Logits [B, V] after one more token of each sequence [B]."""
        logits = self._step_graph(Tensor(tokens), Tensor(np.array([position], np.int32)))
        return logits.asnumpy()[:, : self._vocab_size]

    def stream(
        self, prompts: Sequence[Sequence[int]], num_tokens: int, sampling: Sampling, stop: Optional[int] = None
    ) -> Iterator[np.ndarray]:
        """Tokens int32 [B], one step after another; ends early when every sequence has produced `stop`.

        Raises:
            DataError: if the prompts are empty, of unequal length, or too long.
        """
        ids = self._checked(prompts, num_tokens)
        generator = np.random.default_rng(sampling.seed)
        length = ids.shape[1]
        logits, ended = self.prompt_logits(ids), np.zeros(len(ids), bool)
        for position in range(length, length + num_tokens):
            tokens = choose(logits, sampling, generator)
            yield tokens
            ended |= tokens == (-1 if stop is None else stop)
            if ended.all() or position + 1 == length + num_tokens:
                return
            logits = self.next_logits(tokens, position)

    def _checked(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> np.ndarray:
        if len(prompts) != self._num_sequences or len({len(prompt) for prompt in prompts}) != 1 or not prompts[0]:
            raise DataError(f"prompts: {self._num_sequences} prompts of one length are needed, none of them empty.")
        if len(prompts[0]) + num_tokens > self._num_slots:
            raise DataError(
                f"prompts: {len(prompts[0])} tokens and {num_tokens} new ones are more than the {self._num_slots} "
                "that this generator was made for."
            )
        return np.array(prompts, np.int32)
