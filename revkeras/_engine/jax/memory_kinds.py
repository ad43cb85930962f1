"""Where the values that a stack's steps read live, see `revkeras._engine.tensorflow.residence`.

JAX tells memories apart by the types of arrays: an operation on one of each is an error. A program
gets the weights of the host as they are there, and moves them.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import keras

from revkeras._engine.in_place import InPlace
from revkeras._engine.jax.called import after
from revkeras._keras import ReadingVariable, become

Space = jax.memory.Space


class HostMemory:
    """Values stay in the host's memory and come to the device one step at a time."""

    in_place = False

    def place(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def read(self, variables: Sequence) -> list:
        return [v.kept if isinstance(v, HostVariable) else v.value for v in variables]

    def fetch(self, owners: Sequence, values: list, gate: Any) -> list:
        return [on_device(value) for value in after(gate, values)]

    def release(self, owners: Sequence, gradients: list) -> list:
        return gradients  # they follow their weights: `custom_vjp`


class HostVariable(ReadingVariable):
    """A Keras variable in the host's memory. Within a program its value is on the device."""

    def give(self, kept: Any) -> Any:
        return on_device(kept) if isinstance(kept, jax.core.Tracer) else kept

    def keep(self, value: Any) -> Any:
        return _moved(value, Space.Host)


def residence(offload: str | None) -> InPlace | HostMemory:
    """Where values live by the layer's argument `offload`."""
    return HostMemory() if offload else InPlace()


def place(offload: str | None) -> contextlib.AbstractContextManager:
    """Where variables are made."""
    return contextlib.nullcontext()


def keep_on_host(variable: Any) -> bool:
    """Moves a layer's weight to the host's memory; whether all that should be there is."""
    if variable.trainable and not isinstance(variable, HostVariable):
        become(variable, HostVariable)
    return True


def on_device(x: Any) -> Any:
    """A tensor where it can be computed with; `None` stays."""
    return _moved(x, Space.Device)


@contextlib.contextmanager
def slots_beside(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Inside, what the optimizer makes for a variable of the host lives there too."""
    make = optimizer.add_variable_from_reference

    def make_beside(reference: Any, *args: Any, **kwargs: Any) -> Any:
        variable = make(reference, *args, **kwargs)
        if isinstance(reference, HostVariable):
            become(variable, HostVariable)
        return variable

    optimizer.add_variable_from_reference = make_beside
    try:
        yield
    finally:
        del optimizer.add_variable_from_reference


def beside(x: Any, other: Any) -> Any:
    """A tensor in the memory that another one is in; `None` stays."""
    return _moved(x, jax.typeof(other).memory_space)


def _moved(x: Any, space: Space) -> Any:
    if x is None or jax.typeof(x).memory_space is space:
        return x
    if isinstance(x, jax.core.Tracer):
        return jax.device_put(x, space)
    kind = "pinned_host" if space is Space.Host else "device"
    return jax.device_put(x, x.sharding.with_memory_kind(kind))
