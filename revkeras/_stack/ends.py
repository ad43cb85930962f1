"""How a stack's carry begins, and what comes of it at the end."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from revkeras._engine import verbs
from revkeras._engine.carry import APART, Carry, Layout
from revkeras._keras import at_least_float32
from revkeras._stack.streams import halves, in_dtype, is_pair, with_shape
from revkeras.couplings import Coupling
from revkeras.debugging import checks_enabled


def log_det_dtype(dtype: str) -> str:
    """The dtype of log-determinants beside streams of `dtype`: 16 bits are too few for a sum."""
    return at_least_float32(dtype)


def enter(
    inputs: Any,
    shapes: Any,
    axis: int | None,
    dtype: str,
    coupling: Coupling,
    start: Callable[[Any], list],
    log_det: bool,
) -> tuple[Carry, Layout, Layout]:
    """The carry that a stack begins with.

    Args:
        inputs: What the stack was called on.
        shapes: What `shapes_of` returned for it.
        axis: The axis on which it is split, if it is.
        dtype: The dtype of the streams.
        coupling: That of the first block.
        start: Makes two streams of one tensor where `axis` is `None`.
        log_det: Whether the carry has a log-determinant.

    Returns:
        `(held, packed, layout)`: the carry as `packed` packs it, and how `inputs` hold streams.
    """
    shapes = shapes if is_pair(shapes) else [shapes]
    given = zip(keras.tree.flatten(inputs), shapes, strict=True)
    tensors = [in_dtype(with_shape(x, shape), dtype) for x, shape in given]
    layout = APART
    if not isinstance(inputs, (list, tuple)):
        tensors, layout = (start(tensors[0]), APART) if axis is None else (tensors, halves(axis))
    wide = log_det_dtype(dtype)
    total = (keras.ops.zeros(keras.ops.shape(tensors[0])[:1], wide),) if log_det else ()
    if not coupling.exact:
        return Carry(tuple(tensors), total), layout, layout
    x0, x1, *kept = coupling.to_carry(layout.split(tensors))
    if checks_enabled():
        message = f"The input of a stack is beyond the range of {coupling.describe()[0]}"
        x0, x1, *kept = verbs.require(kept[0] <= 0, message, [x0, x1, *kept])
    return Carry((x0, x1), total, tuple(kept)), APART, layout


def leave(
    held: Carry,
    layout: Layout,
    dtype: str,
    coupling: Coupling,
    inputs: Any,
    end: Callable[[Sequence], Any] | None,
) -> tuple[Any, Any]:
    """Undoes `enter`; `end` makes one tensor of two streams.

    Returns:
        `(outputs, saturated)`: the output in the structure of `inputs`, and how many elements
        went beyond an exact coupling's range, or `None`.
    """
    tensors, saturated = held.streams, None
    if coupling.exact:
        pair, saturated = coupling.from_carry([*held.streams, *held.kept], dtype)
        tensors = layout.join(pair)
    if isinstance(inputs, (list, tuple)):
        return (list if isinstance(inputs, list) else tuple)(tensors), saturated
    return tensors[0] if len(tensors) == 1 else end(tensors), saturated
