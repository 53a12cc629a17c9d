"""Rules between our parameter names and another library's: one list, read in both directions, tensor by tensor.

`*` in a name stands for the layer index. Our fused tensors are made of rows of theirs, in an order that lets tensor
parallelism cut them: see `kv_groups` and `ffn_blocks`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterable, Mapping, Sequence, Union

import numpy as np

from mindmodel.errors import ConversionError
from mindmodel.recipe.schema import ModelSection
from mindmodel.tensor_file import LazyTensor

Shape = tuple[int, ...]
WEIGHT_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class RowOrder:
    """Order of the rows of a fused tensor: `num_groups` times (some rows of part 0, some of part 1, ...).

    Attributes:
        num_groups: equal groups of rows.
        shares: how the rows of a group are divided among the parts, in whole numbers.
    """

    num_groups: int
    shares: tuple[int, ...]


def kv_groups(model: ModelSection) -> RowOrder:
    """Fused query, key and value: for each key/value head its query heads, then its key, then its value."""
    assert model.num_kv_heads is not None
    return RowOrder(num_groups=model.num_kv_heads, shares=(model.num_heads // model.num_kv_heads, 1, 1))


def ffn_blocks(model: ModelSection) -> RowOrder:
    """Fused gate and up: for each block of the feed-forward width the gate's rows, then up's."""
    return RowOrder(num_groups=model.ffn_blocks, shares=(1, 1))


def single_rows(model: ModelSection) -> RowOrder:
    """Fused gate and up, row by row: the gate's first, up's first, the gate's second, ..."""
    assert model.ffn_size is not None
    return RowOrder(num_groups=model.ffn_size, shares=(1, 1))


def join_rows(parts: Iterable[np.ndarray], order: RowOrder) -> np.ndarray:
    """The fused tensor made of the rows of its parts."""
    blocks = [part.reshape(order.num_groups, -1, *part.shape[1:]) for part in parts]
    return np.concatenate(blocks, axis=1).reshape(-1, *blocks[0].shape[2:])


def split_rows(whole: np.ndarray, order: RowOrder, part: int) -> np.ndarray:
    """One part of a fused tensor; the inverse of `join_rows`."""
    start = sum(order.shares[:part])
    stop = start + order.shares[part]
    shares = whole.reshape(order.num_groups, sum(order.shares), -1, *whole.shape[1:])
    return shares[:, start:stop].reshape(-1, *whole.shape[1:])


@dataclass(frozen=True, kw_only=True)
class Rename:
    """The same tensor under another name."""

    ours: str
    theirs: str

    def their_shapes(self, model: ModelSection, shape: Shape) -> dict[str, Shape]:
        """Shapes of their tensors when ours has that shape."""
        return {self.theirs: shape}

    def split(self, model: ModelSection, whole: LazyTensor) -> dict[str, LazyTensor]:
        """Their tensors, made of ours."""
        return {self.theirs: whole}

    def join(self, model: ModelSection, parts: Mapping[str, LazyTensor]) -> LazyTensor:
        """Our tensor, made of theirs."""
        return parts[self.theirs]


@dataclass(frozen=True, kw_only=True)
class Join:
    """Our fused tensor and the tensors it is made of, in the row order that `order` gives for a model."""

    ours: str
    theirs: tuple[str, ...]
    order: Callable[[ModelSection], RowOrder]

    def their_shapes(self, model: ModelSection, shape: Shape) -> dict[str, Shape]:
        """Shapes of their tensors when ours has that shape."""
        shares = self.order(model).shares
        return {name: (shape[0] * share // sum(shares), *shape[1:]) for name, share in zip(self.theirs, shares)}

    def split(self, model: ModelSection, whole: LazyTensor) -> dict[str, LazyTensor]:
        """Their tensors, made of ours."""
        order, shapes = self.order(model), self.their_shapes(model, whole.shape)
        return {
            name: LazyTensor(
                shape=shapes[name],
                dtype=whole.dtype,
                read=lambda part=part: split_rows(whole.read(), order, part),  # type: ignore[misc]
            )
            for part, name in enumerate(self.theirs)
        }

    def join(self, model: ModelSection, parts: Mapping[str, LazyTensor]) -> LazyTensor:
        """Our tensor, made of theirs."""
        tensors = [parts[name] for name in self.theirs]
        rows = sum(tensor.shape[0] for tensor in tensors)
        return LazyTensor(
            shape=(rows, *tensors[0].shape[1:]),
            dtype=tensors[0].dtype,
            read=lambda: join_rows([tensor.read() for tensor in tensors], self.order(model)),
        )


@dataclass(frozen=True, kw_only=True)
class Reorder(Rename):
    """A fused tensor that theirs is too, with its rows in another order."""

    order: Callable[[ModelSection], RowOrder]
    their_order: Callable[[ModelSection], RowOrder]

    def split(self, model: ModelSection, whole: LazyTensor) -> dict[str, LazyTensor]:
        """Their tensor, made of ours."""
        return {self.theirs: _reordered(whole, self.order(model), self.their_order(model))}

    def join(self, model: ModelSection, parts: Mapping[str, LazyTensor]) -> LazyTensor:
        """Our tensor, made of theirs."""
        return _reordered(parts[self.theirs], self.their_order(model), self.order(model))


def _reordered(tensor: LazyTensor, order: RowOrder, target: RowOrder) -> LazyTensor:
    def read() -> np.ndarray:
        rows = tensor.read()
        return join_rows([split_rows(rows, order, part) for part in range(len(order.shares))], target)

    return dataclasses.replace(tensor, read=read)


@dataclass(frozen=True, kw_only=True)
class Tie:
    """A tensor that tied models do not have, because it is `source`; in others a Rename."""

    ours: str
    theirs: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Recomputed:
    """A buffer of theirs that some files hold although it follows from the configuration; never written."""

    theirs: str


Moved = Union[Rename, Join]
Rule = Union[Moved, Tie, Recomputed]


def to_theirs(
    rules: Sequence[Rule], model: ModelSection, shapes: Mapping[str, Shape], ours: Mapping[str, LazyTensor], where: Path
) -> dict[str, LazyTensor]:
    """Their tensors, made of ours; nothing is read yet.

    Args:
        model: with all derived sizes filled in.
        shapes: of our parameters, by name; see `mindmodel.models.family.parameter_shapes`.
        where: what our tensors are from, for messages.

    Raises:
        ConversionError: if ours are not the model's: a line for each missing, unexpected or misshapen tensor.
    """
    _check(ours, shapes, where)
    active = active_rules(rules, model)
    return {name: tensor for rule in active for name, tensor in rule.split(model, ours[rule.ours]).items()}


def to_ours(
    rules: Sequence[Rule],
    model: ModelSection,
    shapes: Mapping[str, Shape],
    theirs: Mapping[str, LazyTensor],
    where: Path,
) -> dict[str, LazyTensor]:
    """Our tensors, made of theirs; the inverse of `to_theirs`, with the same arguments.

    Raises:
        ConversionError: if theirs are not the model's, or a tied output layer is not the embedding.
    """
    active = active_rules(rules, model)
    expected = {name: shape for rule in active for name, shape in rule.their_shapes(model, shapes[rule.ours]).items()}
    dropped = names_without_use(rules, model)
    _check({name: tensor for name, tensor in theirs.items() if name not in dropped}, expected, where)
    for fused in active:
        if isinstance(fused, Join):
            _check_one_dtype(fused, theirs, where)
    ours = {rule.ours: rule.join(model, theirs) for rule in active}
    for rule in rules:
        if isinstance(rule, Tie) and rule.theirs in dropped and rule.theirs in theirs:
            _check_tie(rule, ours[rule.source], theirs[rule.theirs], where)
    return ours


def names_without_use(rules: Sequence[Rule], model: ModelSection) -> set[str]:
    """Names of theirs that may be there and are not taken over: a tied output layer, and buffers."""
    tied = {rule.theirs for rule in rules if isinstance(rule, Tie) and model.tied_embeddings}
    buffers = [rule.theirs for rule in rules if isinstance(rule, Recomputed)]
    return tied | {name.replace("*", str(index)) for name in buffers for index in _indices(name, model)}


def active_rules(rules: Sequence[Rule], model: ModelSection) -> list[Moved]:
    """The rules that move a tensor, with the layer index filled in."""
    active: list[Moved] = []
    for rule in rules:
        if isinstance(rule, Tie) and not model.tied_embeddings:
            active.append(Rename(ours=rule.ours, theirs=rule.theirs))
        elif isinstance(rule, (Rename, Join)):
            active += [_at(rule, index) for index in _indices(rule.ours, model)]
    return active


def _indices(name: str, model: ModelSection) -> range:
    return range(model.num_layers if "*" in name else 1)


def _at(rule: Moved, index: int) -> Moved:
    def fill(name: str) -> str:
        return name.replace("*", str(index))

    if isinstance(rule, Join):
        return dataclasses.replace(rule, ours=fill(rule.ours), theirs=tuple(map(fill, rule.theirs)))
    return dataclasses.replace(rule, ours=fill(rule.ours), theirs=fill(rule.theirs))


def _check(found: Mapping[str, LazyTensor], expected: Mapping[str, Shape], where: Path) -> None:
    """Names and shapes must be the expected ones, dtypes those of weights."""
    faults = [f"missing: {name} {list(shape)}" for name, shape in expected.items() if name not in found]
    faults += [f"unexpected: {name} {list(tensor.shape)}" for name, tensor in found.items() if name not in expected]
    for name in expected.keys() & found.keys():
        if found[name].shape != expected[name]:
            faults.append(f"shape: {name} is {list(found[name].shape)}, the model needs {list(expected[name])}")
        if found[name].dtype.name not in WEIGHT_DTYPES:
            faults.append(f"dtype: {name} is {found[name].dtype.name}; weights are {', '.join(WEIGHT_DTYPES)}")
    if faults:
        raise ConversionError("\n  ".join([f"{where}: the tensors are not those of the model:", *sorted(faults)]))


def _check_one_dtype(rule: Join, theirs: Mapping[str, LazyTensor], where: Path) -> None:
    dtypes = {name: theirs[name].dtype.name for name in rule.theirs}
    if len(set(dtypes.values())) > 1:
        found = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise ConversionError(f"{where}: tensors that become one must have one dtype: {found}.")


def _check_tie(rule: Tie, source: LazyTensor, tied: LazyTensor, where: Path) -> None:
    if source.dtype != tied.dtype or source.read().tobytes() != tied.read().tobytes():
        raise ConversionError(
            f"{where}: {rule.theirs} differs from the embedding, although tie_word_embeddings is true. "
            "Set tie_word_embeddings to false in config.json if both are meant."
        )
