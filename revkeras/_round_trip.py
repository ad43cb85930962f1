"""How far a way back may end from where the way there began."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """The largest errors that pass in one dtype, relative to the largest value.

    Attributes:
        pair: Of a coupling or of a whole layer, where rounding is all that may differ.
        wrong: From here on, a layer's formula is taken to be wrong when the layer is built. What
            passes may still be too inexact for a deep stack.
        stack: Of what all blocks of a stack together rebuild, in the mean. Gradients are off by
            about 1% where it is 3e-4. Additive couplings of hundreds of blocks are off by more
            in 16 bits, as plain training is.
    """

    pair: float
    wrong: float
    stack: float


TOLERANCES = {
    "float64": Tolerance(pair=1e-8, wrong=1e-6, stack=3e-4),
    "float32": Tolerance(pair=2e-5, wrong=1e-2, stack=3e-4),
    "float16": Tolerance(pair=0.05, wrong=0.1, stack=8e-3),
    "bfloat16": Tolerance(pair=0.2, wrong=0.5, stack=6e-2),
}


def relative_error(found: list, expected: list) -> float:
    """The norm of all differences over the norm of what is expected.

    `None` counts as zeros, and what is not finite as infinitely far.
    """
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if not (a is None and b is None)]
    difference = math.hypot(*(np.linalg.norm(to_float64(a) - to_float64(b)) for a, b in pairs))
    size = math.hypot(*(np.linalg.norm(to_float64(b)) for _, b in pairs))
    if difference == 0:
        return 0.0
    error = difference / size if size else math.inf
    return error if math.isfinite(error) else math.inf


def worst_error(found: Sequence, expected: Sequence) -> tuple[float, float, tuple[int, ...]]:
    """The largest difference, the same over the largest value that is expected, and its place.

    Where there is more than one tensor, the place starts with which one. A difference that is
    not finite, or a shape that is another, counts as infinite.
    """
    worst, index = -1.0, ()
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        a, b = to_float64(a), to_float64(b)
        difference = np.abs(a - b) if a.shape == b.shape else np.full(b.shape, math.inf)
        difference = np.where(np.isfinite(difference), difference, math.inf)
        place = np.unravel_index(difference.argmax(), difference.shape)
        if difference[place] > worst:
            worst = float(difference[place])
            index = (*([i] if len(expected) > 1 else []), *map(int, place))
    size = max(float(np.max(np.abs(to_float64(b)))) for b in expected)
    return worst, worst / size if 0 < size < math.inf else worst and math.inf, index


def is_finite(tensors: list) -> bool:
    """Whether all values are."""
    return all(np.isfinite(to_float64(x)).all() for x in tensors)


def to_float64(tensor: Any) -> np.ndarray:
    """The tensor as a NumPy array; a zero for `None`."""
    if tensor is None:
        return np.zeros(())
    return keras.ops.convert_to_numpy(tensor).astype("float64")
