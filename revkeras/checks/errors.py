"""How far tensors are from what they should be."""

import math
from typing import Any

import numpy as np

from revkeras.couplings.check import to_float64


def relative_error(found: list, expected: list) -> float:
    """The norm of all differences over the norm of what is expected.

    `None` counts as zeros, and what is not finite as infinitely far.
    """
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if not (a is None and b is None)]
    difference = math.hypot(*(np.linalg.norm(float64(a) - float64(b)) for a, b in pairs))
    size = math.hypot(*(np.linalg.norm(float64(b)) for _, b in pairs))
    if difference == 0:
        return 0.0
    error = difference / size if size else math.inf
    return error if math.isfinite(error) else math.inf


def worst_error(found: list, expected: list) -> tuple[float, float, tuple[int, ...]]:
    """The largest difference, the same over the largest value that is expected, and its place.

    Where there is more than one tensor, the place starts with which one.
    """
    worst, index = -1.0, ()
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        difference = np.abs(float64(a) - float64(b))
        difference = np.where(np.isfinite(difference), difference, math.inf)
        place = np.unravel_index(difference.argmax(), difference.shape)
        if difference[place] > worst:
            worst = float(difference[place])
            index = (*([i] if len(expected) > 1 else []), *map(int, place))
    size = max(float(np.max(np.abs(float64(b)))) for b in expected)
    return worst, worst / size if 0 < size < math.inf else worst and math.inf, index


def is_finite(tensors: list) -> bool:
    """Whether all values are."""
    return all(np.isfinite(float64(x)).all() for x in tensors)


def float64(tensor: Any) -> np.ndarray:
    """The tensor as a NumPy array; a zero for `None`."""
    return np.zeros(()) if tensor is None else to_float64(tensor)
