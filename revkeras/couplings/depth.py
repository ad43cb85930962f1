"""How many blocks can be rebuilt before rounding spoils their gradients?"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from revkeras._round_trip import TOLERANCES, to_float64
from revkeras.couplings.coupling import Coupling


@dataclasses.dataclass(frozen=True)
class DepthLimit:
    """Where a stack is too deep for its couplings.

    Attributes:
        blocks: About how many blocks they hold.
        couplings: The couplings that lose digits.
    """

    blocks: int
    couplings: tuple[Coupling, ...]


def known_limit(couplings: Sequence[Coupling], dtype: str) -> DepthLimit | None:
    """The limit by what the couplings know, or `None` if none is passed.

    Args:
        couplings: One for each block.
        dtype: The dtype of the streams.
    """
    limits = [(c, limit) for c in couplings if (limit := c.depth_limit(dtype)) is not None]
    used = sum(1 / limit for _, limit in limits)
    if used <= 1 + 1e-9:
        return None
    return DepthLimit(int(len(couplings) / used + 1e-6), _distinct(c for c, _ in limits))


def tried_limit(
    couplings: Sequence[Coupling], shape: Sequence, dtype: str, start: Callable | None
) -> DepthLimit | None:
    """The limit by a trial, or `None` if none is passed.

    Runs as many blocks as the stack has forwards and back, on a few random values. Their
    updates depend on the stream's direction and not on its size, as behind a normalization,
    and add up to about its size, as in a network that starts well. Couplings that do not run
    on such values, or whose streams overflow, have no limit.

    Args:
        couplings: One for each block.
        shape: The shape of a stream.
        dtype: Its dtype.
        start: Makes two streams of one tensor, or `None` where there are two.
    """
    for batch, channels in (4, 8), (2, shape[-1] or 2):
        small = (batch, *[1] * (len(shape) - 2), channels)
        try:
            errors = _stream_errors(couplings, small, dtype, start)
        except Exception:  # noqa: S112 - written for the sizes that the stream really has
            continue
        means = np.cumsum(errors) / np.arange(1, len(errors) + 1)
        beyond = np.flatnonzero(~(means <= TOLERANCES[dtype].stack))
        return DepthLimit(max(1, int(beyond[0])), _distinct(couplings)) if beyond.size else None
    return None


def _stream_errors(
    couplings: Sequence[Coupling], shape: tuple, dtype: str, start: Callable | None
) -> np.ndarray:
    """The relative errors of the streams before each block, the last block's first."""
    generator = np.random.default_rng(0)
    updates = [_Updates(generator, c.n_updates, shape[-1], len(couplings)) for c in couplings]
    # Few values are slow to send to an accelerator.
    with keras.device("cpu:0"), np.errstate(all="ignore"):
        streams = [
            keras.ops.convert_to_tensor(generator.standard_normal(shape), dtype) for _ in range(2)
        ]
        streams = start(streams[0]) if start else streams
        kept, errors = [], []
        for coupling, update in zip(couplings, updates, strict=True):
            kept.append(_joined(streams))
            streams = coupling.couple(streams, update(streams[1], dtype))
        if not np.isfinite(_joined(streams)).all():
            return np.zeros(0)
        for coupling, update in zip(reversed(couplings), reversed(updates), strict=True):
            streams = coupling.uncouple(streams, update(coupling.source(streams), dtype))
            x = kept.pop()
            errors.append(np.linalg.norm(_joined(streams) - x) / np.linalg.norm(x))
    return np.array(errors)


class _Updates:
    """What a block returns: its stream's channels in another order and with other signs."""

    def __init__(self, generator: np.random.Generator, n: int, channels: int, depth: int):
        self.orders = [generator.permutation(channels) for _ in range(n)]
        self.signs = [generator.choice([-1.0, 1.0], channels) for _ in range(n)]
        self.depth = depth

    def __call__(self, source: Any, dtype: str) -> Any:
        x = to_float64(source)
        x /= np.sqrt(self.depth * np.mean(x**2))
        fx = [
            keras.ops.convert_to_tensor(x[..., order] * signs, dtype)
            for order, signs in zip(self.orders, self.signs, strict=True)
        ]
        return fx[0] if len(fx) == 1 else tuple(fx)


def _joined(streams: list) -> np.ndarray:
    return np.stack([to_float64(x) for x in streams])


def _distinct(couplings: Any) -> tuple[Coupling, ...]:
    return tuple({id(c): c for c in couplings}.values())
