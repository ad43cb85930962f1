"""A reversible stack, run backwards, as a layer."""

from typing import Any

import keras

from revkeras._engine import verbs
from revkeras._keras import call_signature, set_call_signature


@keras.saving.register_keras_serializable(package="revkeras")
class Inverse(keras.layers.Layer):
    """Undoes a `ReversibleSequential`, with the same weights.

    `ReversibleSequential.as_inverse()` makes one. In a saved model it still shares
    the weights of its stack; `keras.models.clone_model` gives it a stack of its own.

    Args:
        stack: A `ReversibleSequential`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        outputs: What a call of the stack returns.
        **arguments: What `ReversibleSequential.inverse()` takes beside them.

    Returns:
        What `ReversibleSequential.inverse()` returns.

    Example:

    >>> import keras, revkeras
    >>> stack = revkeras.ReversibleSequential([keras.layers.Dense(4) for _ in range(4)])
    >>> model = keras.Sequential([keras.Input((8,)), stack, stack.as_inverse()])
    >>> bool(keras.ops.max(keras.ops.abs(model(keras.ops.ones((1, 8))) - 1)) < 1e-5)
    True
    """

    def __init__(self, stack: keras.layers.Layer, **kwargs: Any):
        kwargs = {"dtype": stack.dtype_policy, **kwargs, "autocast": False}
        super().__init__(**kwargs)
        self.stack = stack
        self.supports_masking = True
        self.supports_jit = verbs.joins_compile
        set_call_signature(self, call_signature(stack))

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, outputs: Any, **arguments: Any) -> Any:
        return self.stack.inverse(outputs, **arguments)

    def inverse(self, inputs: Any, **arguments: Any) -> Any:
        """Runs the stack forwards."""
        return self.stack(inputs, **arguments)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        return self.stack.compute_mask(inputs, previous_mask)

    def get_config(self) -> dict:
        return {**super().get_config(), "stack": keras.saving.serialize_keras_object(self.stack)}

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "Inverse":
        stack = keras.saving.deserialize_keras_object(config.pop("stack"), custom_objects)
        return cls(stack, **config)
