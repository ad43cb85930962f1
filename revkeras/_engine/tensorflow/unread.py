"""Seeds and counters that are read when a block turns out to need them.

Outside of training most blocks need none. Were they read all the same, `tf.saved_model.save` would
refuse the graph, because it "references an untracked resource".
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from revkeras._engine.step import Step
from revkeras._engine.tensorflow.tracing import tensors_of, trace_function


class Unread:
    """The value that a variable had when `read()` was called first; none if it never is."""

    def __init__(self, read: Callable[[list], list], variable: Any):
        self.dtype, self.shape = tf.as_dtype(variable.dtype), tf.TensorShape(variable.shape)
        self._read, self._variable, self._value = read, variable, None

    def read(self) -> tf.Tensor:
        if self._value is None:
            (self._value,) = self._read([self._variable])
        return self._value


def read_late(read: Callable[[list], list]) -> Callable[[Sequence], list]:
    """`read(variables)`, but in graphs with an `Unread` for each that holds no floats."""
    if tf.executing_eagerly():
        return read

    def read_floats(variables: Sequence) -> list:
        is_float = [tf.as_dtype(v.dtype).is_floating for v in variables]
        floats = iter(read([v for v, f in zip(variables, is_float) if f]))
        return [next(floats) if f else Unread(read, v) for v, f in zip(variables, is_float)]

    return read_floats


def where_read(function: Callable[[list], list], values: Sequence) -> list:
    """`function` of those values that are read; the others stay as they are."""
    found = iter(function([x for x in values if not isinstance(x, Unread)]))
    return [x if isinstance(x, Unread) else next(found) for x in values]


def as_tensors(values: Sequence, is_used: Sequence[bool]) -> list[tf.Tensor]:
    """The values, read where they are used."""
    return [
        x if not isinstance(x, Unread) else (x.read() if used else tf.zeros(x.shape, x.dtype))
        for x, used in zip(values, is_used, strict=True)
    ]


def read_as_used(function: Callable, arguments: Sequence, state: Sequence) -> list[tf.Tensor]:
    """`state`, read where `function(*arguments, state)` uses it."""
    if not any(isinstance(x, Unread) for x in state):
        return list(state)
    is_used = trace_function(function, (*arguments, list(state))).is_used
    return as_tensors(state, is_used[len(is_used) - len(state) :])


def fetch(residence: Any, step: Step, weights: list, state: list, gate: Any) -> tuple[list, list]:
    """A step's weights and those of its states that are read, from where they live."""
    values = [*weights, *state]
    owners = zip((*step.owners, *step.state_owners), values, strict=True)
    owners = [owner for owner, value in owners if not isinstance(value, Unread)]
    gate = tensors_of(gate)
    values = where_read(lambda values: residence.fetch(owners, values, gate), values)
    return values[: len(weights)], values[len(weights) :]
