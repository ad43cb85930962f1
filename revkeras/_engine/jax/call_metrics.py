"""Metrics that a layer updates in its own call."""

import types
from typing import Any

import keras

from revkeras._keras import raw


class CarriedSum(keras.metrics.Metric):
    """A sum whose value goes through a step with a layer's other state.

    In a step, Keras's JAX trainer gives layers no metric's variables, so this has none: its value
    goes along as that of a random generator does, `generator`. The trainer takes results of metrics
    where that value is not known, so the result is 0 until an epoch ends.
    """

    def __init__(self, name: str):
        super().__init__(name=name)
        # Keras would track a variable that is an attribute.
        self.generator = types.SimpleNamespace(
            state=keras.Variable(0.0, trainable=False, dtype=self.dtype, name=name)
        )

    def update_state(self, value: Any) -> None:
        self.generator.state.assign_add(value)

    def result(self) -> Any:
        state = self.generator.state
        return keras.ops.zeros(()) if raw(state) is None else state.value

    def reset_state(self) -> None:
        self.generator.state.assign(0.0)
