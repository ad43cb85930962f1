"""An operation of a traced function, as conversions look at it."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import keras

# What stands for unknown sizes, the batch's and others': the first at which a function runs.
_SIZES = (7, 64), (7, 8), (7, 2)


class Operation(NamedTuple):
    """One operation, in the order of their calls.

    Attributes:
        kind: `"hands on"` its inputs as they are, `"adds"` them up, `"measures"`
            their shapes, is a `"mark"`, or `"computes"`.
        inputs: The keys of the tensors that it reads.
        outputs: The keys of the tensors that it makes.
        label: What a mark was called.
    """

    kind: str
    inputs: tuple[Hashable, ...]
    outputs: tuple[Hashable, ...]
    label: str | None = None


def at_known_sizes(run: Callable[[Any], Any], specs: Any) -> Any:
    """`run(specs)`, with a number for each unknown size of the `KerasTensor`s."""
    *first, last = (
        keras.tree.map_structure(functools.partial(_known, batch=batch, others=others), specs)
        for batch, others in _SIZES
    )
    for known in first:
        with contextlib.suppress(Exception):  # whatever a model raises on too long an input
            return run(known)
    return run(last)


def _known(x: keras.KerasTensor, batch: int, others: int) -> keras.KerasTensor:
    unknown = itertools.chain([batch], itertools.repeat(others))
    shape = [n if size is None else size for size, n in zip(x.shape, unknown)]
    return keras.KerasTensor(shape, x.dtype)
