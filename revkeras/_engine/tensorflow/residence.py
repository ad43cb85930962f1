"""Where the values that a stack's steps read live, and how they come to a step.

A residence has four verbs. `place()`: a scope in which variables are made and read.
`read(variables)`: their values as they live there. `fetch(owners, values, gate)`: the
values as a step reads them, on their way when the tensors of `gate` are there.
`release(owners, gradients)`: a step's gradients as they go back. Owners are the
variables, or tensors, whose values they are. `in_place` tells whether they stay where they are.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from revkeras._engine.in_place import InPlace
from revkeras._engine.tensorflow.graph import snapshot


class OnHost:
    """Values stay in the host's memory and come to the device one step at a time."""

    in_place = False

    def place(self) -> contextlib.AbstractContextManager:
        return place("host")

    def read(self, variables: Sequence) -> list:
        return snapshot(variables)

    def fetch(self, owners: Sequence, values: list, gate: list) -> list:
        """The values, sent when `gate` is there.

        A value is sent to the device that reads it as soon as it exists. Without the
        wait, the weights of all steps arrived there while the first was computing.
        """
        with self.place(), tf.control_dependencies(gate):
            return [tf.identity(value) for value in values]

    def release(self, owners: Sequence, gradients: list) -> list:
        return gradients


def residence(offload: str | None) -> InPlace | OnHost:
    """Where values live by the layer's argument `offload`."""
    return OnHost() if offload else InPlace()


def host() -> str:
    """The full name of the host, which a scope around it does not change."""
    with tf.init_scope(), tf.device(None), tf.device("CPU:0"):
        return tf.zeros(()).device


def place(offload: str | None) -> contextlib.AbstractContextManager:
    """Where variables are made, and their values read: on the host, or wherever it is now."""
    return tf.device(host()) if offload else contextlib.nullcontext()


def keep_on_host(variable: Any) -> bool:
    """Whether a layer's weight lives in the host's memory. TensorFlow moves none."""
    return variable.value.device == host()


def on_device(x: Any) -> Any:
    """A tensor where it can be computed with; TensorFlow brings it there."""
    return x


def slots_beside(optimizer: Any) -> contextlib.AbstractContextManager:
    """Inside, an optimizer makes what it keeps of a variable beside it, as it does anyway."""
    return contextlib.nullcontext()
