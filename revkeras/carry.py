"""What a stack carries from layer to layer: two streams, and what there is beside them.

The order is: the streams, the log-determinant if there is one, then either
what an exact coupling keeps or the tensors that left the stack on the way.
"""

from typing import Any

import keras

from revkeras import backprop
from revkeras.couplings import Coupling
from revkeras.debugging import checks_enabled
from revkeras.step import Layout
from revkeras.streams import APART


def log_det_dtype(dtype: str) -> str:
    """The dtype of log-determinants beside streams of `dtype`: 16 bits are too few for a sum."""
    return keras.backend.result_type(dtype, "float32")


def lift(coupling: Coupling, layout: Layout, tensors: list, log_det: bool) -> tuple[list, Layout]:
    """From the tensors that hold the streams to those that go through the stack.

    Returns:
        `(tensors, layout)`, and how these hold the carry.
    """
    n = layout.n_tensors
    dtype = log_det_dtype(keras.backend.standardize_dtype(tensors[0].dtype))
    total = [keras.ops.zeros(keras.ops.shape(tensors[0])[:1], dtype)] if log_det else []
    if coupling.exact:
        x0, x1, *kept = coupling.lift(layout.split(tensors))
        if checks_enabled():
            message = f"The input of a stack is beyond the range of {coupling.describe()[0]}"
            x0, x1, *kept = backprop.require(kept[0] <= 0, message, [x0, x1, *kept])
        return [x0, x1, *total, *kept], APART
    behind = Layout(
        split=lambda tensors: [*layout.split(tensors[:n]), *tensors[n:]],
        join=lambda carry: [*layout.join(carry[:2]), *carry[2:]],
        n_tensors=n,
    )
    return [*tensors, *total], behind


def lower(
    coupling: Coupling, layout: Layout, tensors: list, log_det: bool, dtype: str
) -> tuple[list, list, Any]:
    """Undoes `lift`.

    Returns:
        `(tensors, beside, saturated)`: those that hold the streams, those that
        went beside them for the caller, and how many elements went beyond an
        exact coupling's range, or `None`.
    """
    if coupling.exact:
        x0, x1, *beside = tensors
        pair, saturated = coupling.lower([x0, x1, *beside[log_det:]], dtype)
        return layout.join(pair), beside[:log_det], saturated
    return tensors[: layout.n_tensors], tensors[layout.n_tensors :], None
