"""How a stack's carry begins, and what comes of it at the end."""

from collections.abc import Sequence
from typing import Any

import keras

from revkeras._engine import verbs
from revkeras._engine.carry import APART, Carry, Layout
from revkeras.couplings import Coupling
from revkeras.debugging import checks_enabled


def log_det_dtype(dtype: str) -> str:
    """The dtype of log-determinants beside streams of `dtype`: 16 bits are too few for a sum."""
    return keras.backend.result_type(dtype, "float32")


def begin_carry(
    coupling: Coupling, layout: Layout, tensors: Sequence, log_det: bool
) -> tuple[Carry, Layout]:
    """The carry from the tensors that hold the streams.

    Returns:
        `(held, layout)`: the carry as `layout` packs it.
    """
    dtype = log_det_dtype(keras.backend.standardize_dtype(tensors[0].dtype))
    total = (keras.ops.zeros(keras.ops.shape(tensors[0])[:1], dtype),) if log_det else ()
    if not coupling.exact:
        return Carry(tuple(tensors), total), layout
    x0, x1, *kept = coupling.to_carry(layout.split(tensors))
    if checks_enabled():
        message = f"The input of a stack is beyond the range of {coupling.describe()[0]}"
        x0, x1, *kept = verbs.require(kept[0] <= 0, message, [x0, x1, *kept])
    return Carry((x0, x1), total, tuple(kept)), APART


def end_carry(coupling: Coupling, layout: Layout, held: Carry, dtype: str) -> tuple[Sequence, Any]:
    """Undoes `begin_carry`.

    Returns:
        `(tensors, saturated)`: those that hold the streams, and how many elements went beyond
        an exact coupling's range, or `None`.
    """
    if not coupling.exact:
        return held.streams, None
    pair, saturated = coupling.from_carry([*held.streams, *held.kept], dtype)
    return layout.join(pair), saturated
