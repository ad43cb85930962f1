"""Whole values of sharded variables, and slices of their mean gradients.

The loss is the mean of the ranks' losses. To gather slices and to scatter means are then each
other's gradient, so a gradient of any order passes through both.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from keras import ops

from revkeras._engine import verbs
from revkeras._keras import stored_dtype
from revkeras.distribute.partition import share


def gathered(engine: Any, variables: Sequence, shards: list, wires: Sequence[str]) -> list:
    """The whole values of sharded variables, by one collective for each dtype.

    Differentiable: the gradients of the shards are those of the whole values, averaged over
    the ranks and cut.

    Args:
        engine: The engine that the ranks communicate by.
        variables: The variables.
        shards: Their slices on this rank, as tensors.
        wires: The dtypes in which they are gathered and returned.
    """

    def run(*shards: Any) -> tuple[list, Callable]:
        whole: list = [None] * len(variables)
        for wire in dict.fromkeys(wires):
            chosen = [i for i, w in enumerate(wires) if w == wire]
            shapes = _shapes(variables, chosen)
            join = functools.partial(_joined, wire)
            join = verbs.shared(join, "join", wire, shapes)
            cut = functools.partial(_whole, shapes, engine.size)
            cut = verbs.shared(cut, "cut", wire, shapes)
            parts = cut(engine.all_gather(join(*(shards[i] for i in chosen))))
            for i, value in zip(chosen, parts):
                whole[i] = value
        # By `scattered`, and not by those of the operations above, which sum up in 16 bits.
        return whole, lambda *gradients: scattered(engine, variables, list(gradients))

    return verbs.with_gradient(run, *shards)


def scattered(engine: Any, variables: Sequence, gradients: list) -> list:
    """This rank's slices of the mean of whole gradients, by one collective for each dtype.

    Differentiable. `None` where there is no gradient, which is so on all ranks.
    """
    slices: list = [None] * len(gradients)
    there = [i for i, g in enumerate(gradients) if g is not None]
    for dtype in dict.fromkeys(stored_dtype(variables[i]) for i in there):
        chosen = [i for i in there if stored_dtype(variables[i]) == dtype]
        shapes = _shapes(variables, chosen)
        lay = functools.partial(_laid_out, shapes, engine.size, dtype)
        lay = verbs.shared(lay, "lay", dtype, shapes)
        take = functools.partial(_slices, shapes, engine.size, dtype)
        take = verbs.shared(take, "take", dtype, shapes)
        parts = take(_scattered_mean(engine, lay(*(gradients[i] for i in chosen))))
        for i, part in zip(chosen, parts):
            slices[i] = part
    return slices


def _scattered_mean(engine: Any, rows: Any) -> Any:
    """This rank's row of the ranks' mean."""

    def run(rows: Any) -> tuple[Any, Callable]:
        mean = engine.reduce_scatter(rows) / engine.size
        return mean, lambda d: [_gathered_rows(engine, d)]

    return verbs.with_gradient(run, rows)


def _gathered_rows(engine: Any, row: Any) -> Any:
    """All ranks' rows."""

    def run(row: Any) -> tuple[Any, Callable]:
        return engine.all_gather(row), lambda d: [_scattered_mean(engine, d)]

    return verbs.with_gradient(run, row)


def _shapes(variables: Sequence, chosen: list[int]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(variables[i].shape) for i in chosen)


def _joined(dtype: str, *parts: Any) -> Any:
    return ops.concatenate([ops.cast(part, dtype) for part in parts])


def _whole(shapes: Sequence[tuple], n_ranks: int, flat: Any) -> list:
    """Whole values, of all ranks' slices of them."""
    sizes = [math.prod(shape) for shape in shapes]
    steps = [share(size, n_ranks) for size in sizes]
    columns = _columns(ops.reshape(flat, (n_ranks, sum(steps))), steps)
    flats = [ops.reshape(c, (-1,))[:size] for c, size in zip(columns, sizes)]
    return [ops.reshape(flat, shape) for flat, shape in zip(flats, shapes)]


def _laid_out(shapes: Sequence[tuple], n_ranks: int, dtype: str, *gradients: Any) -> Any:
    """Whole gradients as one flat tensor, a row of slices for each rank."""
    rows = []
    for shape, gradient in zip(shapes, gradients, strict=True):
        size = math.prod(shape)  # a gradient's own shape may be known only when it runs
        step = share(size, n_ranks)
        flat = ops.cast(ops.reshape(gradient, (size,)), _wide(dtype))
        padded = ops.pad(flat, [[0, step * n_ranks - size]])
        rows.append(ops.reshape(padded, (n_ranks, step)))
    return ops.reshape(ops.concatenate(rows, axis=1), (-1,))


def _slices(shapes: Sequence[tuple], n_ranks: int, dtype: str, row: Any) -> list:
    """A rank's slices of variables, of its row."""
    steps = [share(math.prod(shape), n_ranks) for shape in shapes]
    parts = _columns(ops.reshape(row, (1, sum(steps))), steps)
    return [ops.cast(ops.reshape(part, (-1,)), dtype) for part in parts]


def _columns(rows: Any, steps: list[int]) -> list:
    ends = list(itertools.accumulate(steps))[:-1]
    return ops.split(rows, ends, axis=1) if ends else [rows]


def _wide(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"
