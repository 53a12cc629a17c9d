"""What MindSpore's operators for shapes, parts and indices of tensors compute, in NumPy."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from mindmodel.dryrun.kernels import Array, Context, Kernel, axes, given, int_tuple, plain


def squeeze(context: Context, x: Array, axis: Any = None) -> Array:
    """Without these axes of length 1; all of them if none is named."""
    return np.squeeze(x, axes(given(context, axis, "axis", None)))


def split(context: Context, x: Array, axis: Any = None, count: Any = None) -> tuple[Array, ...]:
    """Equal parts along an axis."""
    return tuple(np.split(x, given(context, count, "output_num", 1), given(context, axis, "axis", 0)))


def split_with_size(context: Context, x: Array, sizes: Any, axis: int = 0) -> tuple[Array, ...]:
    """Parts of given lengths along an axis."""
    if sum(int_tuple(sizes)) != x.shape[axis]:
        raise ValueError(f"sizes {int_tuple(sizes)} do not add up to {x.shape[axis]}")
    return tuple(np.split(x, np.cumsum(int_tuple(sizes))[:-1], axis))


def _joining(function: Callable[..., Array]) -> Kernel:
    """Kernel that joins parts along an axis, which is new or not."""
    return lambda context, parts, axis=None: function(parts, given(context, axis, "axis", 0))


def _slices(begin: Any, end: Any, strides: Any, masks: tuple[int, ...]) -> tuple[Any, ...]:
    """An index as Python has it. Masks, in MindSpore's order: no begin, no end, ellipsis, new axis, one element."""
    no_begin, no_end, ellipsis, new_axis, element = [*masks, 0, 0, 0, 0, 0][:5]
    if ellipsis or new_axis:
        raise ValueError("ellipsis and new-axis masks have no kernel here")
    index: list[Any] = []
    for dim, (first, stop, stride) in enumerate(zip(int_tuple(begin), int_tuple(end), int_tuple(strides))):
        bit = 1 << dim
        span = slice(None if no_begin & bit else first, None if no_end & bit else stop, stride)
        index.append(first if element & bit else span)
    return tuple(index)


def strided_slice(context: Context, x: Array, begin: Any, end: Any, strides: Any, *masks: int) -> Array:
    """x[begin:end:stride] in every dim."""
    return x[_slices(begin, end, strides, masks)]


def strided_slice_grad(
    context: Context, grad: Array, shape: Any, begin: Any, end: Any, strides: Any, *masks: int
) -> Array:
    """Gradient of a strided slice of a tensor of this shape."""
    result = np.zeros(int_tuple(shape), grad.dtype)
    result[_slices(begin, end, strides, masks)] = grad
    return result


def slice_of_size(context: Context, x: Array, begin: Any, size: Any) -> Array:
    """`size` elements from `begin` in every dim; -1 is all the rest."""
    pairs = zip(int_tuple(begin), int_tuple(size))
    return x[tuple(slice(first, None if length == -1 else first + length) for first, length in pairs)]


def gather(context: Context, table: Array, indices: Array, axis: int = 0, batch_dims: int = 0) -> Array:
    """Slices of a table along an axis. An index outside is an error."""
    if batch_dims:
        raise ValueError(f"batch_dims={batch_dims} has no kernel here")
    if indices.size and not 0 <= indices.min() <= indices.max() < table.shape[axis]:
        raise ValueError(f"indices {indices.min()} to {indices.max()} reach outside {table.shape[axis]} rows")
    return np.take(table, indices, axis)


def unsorted_segment_sum(context: Context, x: Array, segments: Array, count: Any) -> Array:
    """Sum of the rows of each segment; rows of a negative one are dropped."""
    rows = x.reshape(-1, *x.shape[segments.ndim :])
    kept = segments.ravel() >= 0
    result = np.zeros((int(count), *rows.shape[1:]), x.dtype)
    np.add.at(result, segments.ravel()[kept], rows[kept])
    return result


def _along(index: Array, axis: int) -> tuple[Array, ...]:
    """NumPy's index of one element along an axis for every place of `index`."""
    places: list[Any] = list(np.ogrid[tuple(slice(size) for size in index.shape)])
    places[axis] = index
    return tuple(places)


def gather_along(context: Context, x: Array, axis: int, index: Array) -> Array:
    """One element along an axis for every place of `index`."""
    return x[_along(index, axis)]


def gather_along_grad(context: Context, x: Array, axis: int, index: Array, grad: Array) -> Array:
    """Gradient of gather_along with respect to x."""
    result = np.zeros(x.shape, grad.dtype)
    np.add.at(result, _along(index, axis), grad)
    return result


def scatter_along(context: Context, x: Array, axis: int, index: Array, source: Array) -> Array:
    """x with one element along an axis replaced for every place of `index`."""
    result = np.array(x)
    result[_along(index, axis)] = source[tuple(slice(size) for size in index.shape)]
    return result


_OF_SHAPES: dict[str, Callable[..., Any]] = {
    "BroadcastTo": lambda x, shape: np.broadcast_to(x, int_tuple(shape)),
    "ExpandDims": lambda x, axis: np.expand_dims(x, int(axis)),
    "Rank": np.ndim,
    "Reshape": lambda x, shape: np.reshape(x, int_tuple(shape)),
    "Shape": np.shape,
    "TensorShape": lambda x: np.array(x.shape, np.int64),
    "Tile": lambda x, multiples: np.tile(x, int_tuple(multiples)),
    "Transpose": lambda x, order: np.transpose(x, int_tuple(order)),
    "View": lambda x, shape: np.reshape(x, int_tuple(shape)),
}

KERNELS: dict[str, Kernel] = {
    **{name: plain(function) for name, function in _OF_SHAPES.items()},
    "Concat": _joining(np.concatenate),
    "Stack": _joining(np.stack),
    "Gather": gather,
    "GatherD": gather_along,
    "GatherDGradV2": gather_along_grad,
    "InplaceScatterSrc": scatter_along,
    "Slice": slice_of_size,
    "Split": split,
    "SplitWithSize": split_with_size,
    "Squeeze": squeeze,
    "StridedSlice": strided_slice,
    "StridedSliceGrad": strided_slice_grad,
    "UnsortedSegmentSum": unsorted_segment_sum,
}
