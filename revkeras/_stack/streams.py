"""The shapes, dtypes and masks of the two streams, and how tensors hold them."""

import operator
from collections.abc import Sequence
from typing import Any

import keras

from revkeras._engine.carry import Layout
from revkeras._stack.masks import mask_of


def check_split_axis(axis: Any) -> int | None:
    """`axis` as an integer; raises unless it could be an axis after the batch's."""
    if axis is None:
        return None
    if isinstance(axis, bool) or not hasattr(axis, "__index__") or operator.index(axis) == 0:
        raise ValueError(
            "Invalid value for argument `split_axis`: expected None or an integer other than 0, "
            f"the batch axis; received split_axis={axis!r} (of type {type(axis).__name__})."
        )
    return operator.index(axis)


def check_inputs(inputs: Any) -> None:
    """Raises unless the input is a floating-point tensor, or two of equal shape."""
    tensors = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
    if not all(_is_dense_tensor(x) for x in tensors):
        raise ValueError(
            "Invalid value for argument `inputs` of ReversibleSequential: expected a dense "
            f"tensor, or a list or tuple of two, received {inputs!r}."
        )
    dtypes = [keras.backend.standardize_dtype(x.dtype) for x in tensors]
    if not all("float" in dtype for dtype in dtypes):
        raise ValueError(
            "Invalid dtype for argument `inputs` of ReversibleSequential: expected "
            f"floating-point tensors, received {dtypes}. Embed or cast them first."
        )
    if isinstance(inputs, (list, tuple)):
        stream_shape([x.shape for x in tensors], None)


def stream_shape(input_shape: Any, axis: int | None) -> tuple:
    """The shape of one stream; raises if the input does not hold two."""
    if is_pair(input_shape):
        shapes = [s if s is None else tuple(s) for s in input_shape]
        if None in shapes or len(shapes) != 2 or not same_shape(*shapes) or is_pair(shapes[0]):
            raise ValueError(
                "A list or tuple given to ReversibleSequential is taken as its two streams: "
                f"expected two tensors of equal shape, received shapes {shapes}."
            )
        return shapes[1]
    if isinstance(input_shape, dict) or len(input_shape) < 2:
        raise ValueError(
            "ReversibleSequential expected an input of shape (batch, ..., channels), or a list "
            f"or tuple of two, received the shape {input_shape}."
        )
    shape = list(input_shape)
    if axis is None:
        return tuple(shape)
    if not -len(shape) < axis < len(shape):
        raise ValueError(
            f"Invalid value for argument `split_axis`: the input has rank {len(shape)}, so an "
            f"axis from 1 to {len(shape) - 1} (or from {1 - len(shape)} to -1) was expected; "
            f"received split_axis={axis} for an input of shape {tuple(shape)}."
        )
    if shape[axis] is None or shape[axis] % 2:
        raise ValueError(
            f"ReversibleSequential splits its input in two halves on `split_axis`={axis}: "
            f"expected a known, even size there, received {shape[axis]} in an input of shape "
            f"{tuple(shape)}. {_way_to_halves(shape, axis)}, or choose another `split_axis`. "
            "`split_axis=None` passes the whole input to both streams; such a stack has no "
            "inverse, since its one output does not determine them."
        )
    shape[axis] //= 2
    return tuple(shape)


def _way_to_halves(shape: list, axis: int) -> str:
    """What to do about a size that is not known and even."""
    if shape[axis] is None:
        return "Fix the size, as in `keras.Input(shape)` or `build(input_shape)`"
    padding = [[0, 0] for _ in shape]
    padding[axis][1] = 1
    is_last = axis % len(shape) == len(shape) - 1
    project = f"project the channels by `keras.layers.Dense({shape[axis] + 1})`, or " * is_last
    return (
        f"In front of the stack, {project}append a zero by `keras.ops.pad(inputs, {padding})`, "
        "which is cut off again behind the inverse"
    )


def whole_shape(shape: tuple, layout: Layout, axis: int | None) -> tuple:
    """The shape of the tensors that hold streams of `shape`."""
    whole = list(shape)
    if layout.n_tensors == 1:
        whole[axis] *= 2
    return tuple(whole)


def input_spec(input_shape: Any, axis: int | None) -> Any:
    """What later inputs must look like, as Keras checks it."""
    if is_pair(input_shape):
        return [keras.layers.InputSpec(ndim=len(s), axes={-1: s[-1]}) for s in input_shape]
    axes = {} if axis is None else {axis: input_shape[axis]}
    return keras.layers.InputSpec(ndim=len(input_shape), axes=axes)


def shapes_of(inputs: Any, spec: Any) -> Any:
    """The input's shape, or the list of its shapes.

    A size that is not known statically is that of the build, if `spec`, which `input_spec` made
    of it, fixes it.
    """
    check_inputs(inputs)
    if isinstance(inputs, (list, tuple)):
        specs = spec if isinstance(spec, list) else [None] * 2
        return [completed(x.shape, own) for x, own in zip(inputs, specs, strict=True)]
    return completed(inputs.shape, None if isinstance(spec, list) else spec)


def completed(shape: Sequence, spec: keras.layers.InputSpec | None) -> tuple:
    """A tensor's shape, with the sizes that `spec` fixes where they are not known."""
    sizes = list(shape)
    for axis, size in spec.axes.items() if spec else ():
        sizes[axis] = size if sizes[axis] is None else sizes[axis]
    return tuple(sizes)


def with_shape(x: Any, shape: tuple) -> Any:
    """The tensor, of the static shape `shape`."""
    if tuple(x.shape) == shape:
        return x
    sizes = zip(shape, keras.ops.shape(x), strict=True)
    return keras.ops.reshape(x, tuple(n if size is None else size for size, n in sizes))


def in_dtype(x: Any, dtype: str) -> Any:
    """The tensor in a dtype. Eagerly, a cast takes its time even where nothing changes."""
    return x if keras.backend.standardize_dtype(x.dtype) == dtype else keras.ops.cast(x, dtype)


def halves(axis: int) -> Layout:
    """One tensor that holds the streams as its two halves on `axis`."""
    return Layout(
        split=lambda tensors: list(keras.ops.split(tensors[0], 2, axis=axis)),
        join=lambda streams: [keras.ops.concatenate(streams, axis=axis)],
        n_tensors=1,
    )


def stream_masks(inputs: Any, mask: Any, axis: int | None) -> list:
    """The mask of each of the two streams, or `None`."""
    if isinstance(inputs, (list, tuple)):
        masks = list(mask) if isinstance(mask, (list, tuple)) else [mask] * 2
        return [mask_of(x) if m is None else m for x, m in zip(inputs, masks, strict=True)]
    mask = mask_of(inputs) if mask is None else mask
    if mask is None or axis is None or axis % len(inputs.shape) >= len(mask.shape):
        return [mask] * 2
    return list(keras.ops.split(mask, 2, axis=axis % len(inputs.shape)))


def same_shape(a: Sequence, b: Sequence) -> bool:
    """Whether two shapes agree wherever both are known."""
    return len(a) == len(b) and all(
        m == n or m is None or n is None for m, n in zip(a, b, strict=True)
    )


def is_pair(shape: Any) -> bool:
    """Whether a shape is that of a list or tuple of tensors."""
    return not isinstance(shape, dict) and any(isinstance(s, (list, tuple)) for s in shape)


def _is_dense_tensor(x: Any) -> bool:
    if isinstance(x, keras.KerasTensor):
        return not (getattr(x, "ragged", False) or x.sparse)
    # What ragged and sparse tensors of the backends have, and dense ones have not.
    other = any(hasattr(x, name) for name in ("row_splits", "dense_shape", "nse"))
    return keras.ops.is_tensor(x) and not other and not getattr(x, "is_sparse", False)
