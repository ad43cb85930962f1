"""Arithmetic that undoes itself bit by bit.

Tensors hold multiples of `UNIT = 2**-32`. They are float64, so that tapes record
them, but they are used as integers: sums, products and remainders of integers
below 2**53 are exact in float64, in any order and with or without fused
multiply-adds. Gradients pass through as if nothing were rounded.
"""

import copy
import functools
from typing import Any

from keras import ops

FRACTION_BITS = 32
UNIT = 2.0**-FRACTION_BITS
RANGE = 2.0**19  # of what goes in, see `update_range`
CAPACITY = 2**51  # of an integer that is divided, see `divide`


def update_range(depth: int) -> float:
    """How large an update, or a velocity, may be in a stack of `depth` blocks.

    With it, a stream that starts within `RANGE` stays within `2 * RANGE`, which
    is 2**52 units, one that starts there within 1.5 * 2**52, and a velocity within
    about `RANGE / 2`, which is 2**50.
    """
    # A velocity is a mean of updates, to which rounding adds less than 2 units a block. That
    # makes at most depth * (depth + 1) units in the stream, which the `+ 1` leaves room for up
    # to 2**17 blocks. Streams are never divided: their own bound is 2**53.
    return RANGE / (depth + 1)


def absorb(x: Any, limit: float) -> tuple[Any, Any]:
    """`x` on the grid and within `limit`, and how many of its elements were not within.

    What is not finite becomes NaN and stays it, on the way back too: were it clipped, nobody
    would see an overflow. Elements beyond the limit have no gradient.
    """
    x = ops.cast(x, "float64")
    saturated = ops.sum(ops.cast(ops.logical_not(ops.abs(x) <= limit), "float32"))
    finite = ops.isfinite(x)
    x = ops.clip(ops.where(finite, x, ops.zeros_like(x)), -limit, limit)
    x = ops.where(finite, x, ops.full_like(x, float("nan")))
    # Not `round`, which keeps the sign of -0.0: the way back would return 0.0 for it.
    return on_grid(floor(x / UNIT + 0.5), tangent(x)), saturated


def floor(x: Any) -> Any:
    """The integer below. `ops.floor` makes float32 of it on JAX and PyTorch."""
    return ops.floor_divide(x, 1)


def on_grid(units: Any, tangent: Any) -> Any:
    """The value of `units * UNIT`, with the gradient of `tangent`."""
    return ops.stop_gradient(units * UNIT) + tangent


def in_units(x: Any) -> Any:
    """A value on the grid as an integer, which has no gradient."""
    return ops.stop_gradient(x) / UNIT


def tangent(x: Any) -> Any:
    """Zero, with the gradient of `x`."""
    # Scaled after the difference and not before it: a fused multiply-add makes of
    # `a * x - a * x` what the rounding of one product lost.
    return x - ops.stop_gradient(x)


def divide(x: Any, d: int) -> tuple[Any, Any]:
    """The quotient, rounded down, and the remainder of an integer `|x| < 2**51`."""
    # Compilers turn `x / d` into `x * (1 / d)`, and 49 * (1 / 49) is less than 1. The half keeps
    # the quotient 0.5 / d away from every integer, and two roundings of at most 2**-53 each move
    # it by less than |x + 0.5| / d * (2**-52 + 2**-106) < 0.5 / d.
    quotient = floor((x + 0.5) / d)
    return quotient, x - quotient * d


def rescale(v: Any, buffer: Any, n: int, d: int) -> tuple[Any, Any]:
    """`v * n / d` to less than one unit; `buffer` takes what the rounding loses.

    `rescale(*rescale(v, buffer, n, d), d, n)` is `(v, buffer)`. As in
    [Maclaurin et al., 2015](https://arxiv.org/abs/1502.03492), the buffer is a
    number whose digits are remainders. A digit below `n` is taken out of it first
    and fills the digits that `v * n` leaves open, so that the buffer grows by
    `log2(d / n)` bits only.
    """
    # With v * n + digit = q * d + rest, (v, digit) and (q, rest) determine each other. Here the
    # multiple of d in v goes around the product, which could be too large.
    buffer, digit = divide(buffer, n)
    multiple, part = divide(v, d)
    quotient, rest = divide(part * n + digit, d)
    return multiple * n + quotient, buffer * d + rest


@functools.cache
def blocks_per_buffer(n: int, d: int) -> int:
    """How many times `rescale` may act on a buffer that starts at zero."""
    largest, blocks = d - 1, 0
    while largest < CAPACITY:
        largest, blocks = largest // n * d + d - 1, blocks + 1
    return blocks


def to_fixed_point(streams: list, limits: list) -> list:
    """The streams on the grid, each within its limit, and the number of elements beyond."""
    values, saturated = zip(
        *(absorb(x, limit) for x, limit in zip(streams, limits, strict=True)), strict=True
    )
    return [*values, sum(saturated)]


def from_fixed_point(carry: list, dtype: str) -> tuple[list, Any]:
    """The streams in `dtype`, and the number of saturated elements."""
    return [ops.cast(x, dtype) for x in carry[:2]], carry[2]


def located(coupling: Any, index: int, depth: int) -> Any:
    """A copy of a coupling that knows its block's `index` in a stack of `depth` blocks."""
    coupling = copy.copy(coupling)
    coupling.index, coupling.depth = index, depth
    return coupling
