"""Which place each element of a sequence has."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("revkeras")
class LearnedPositions(keras.layers.Layer):
    """Adds a learned vector for each place of a sequence.

    Args:
        max_length: Integer, how many places there are.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: A tensor of shape `(batch, length, width)`.
        start: Integer or integer tensor, the place of the first element. Defaults to `0`.

    Example:

    >>> import keras
    >>> from revkeras.models.position import LearnedPositions
    >>> LearnedPositions(8)(keras.ops.ones((2, 5, 4))).shape
    TensorShape([2, 5, 4])
    """

    def __init__(self, max_length: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.max_length = max_length
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        self.table = self.add_weight(
            shape=(self.max_length, input_shape[-1]),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
            name="table",
        )
        self.built = True

    def call(self, inputs: Any, start: Any = 0) -> Any:
        length, width = inputs.shape[1], inputs.shape[-1]
        if isinstance(length, int) and length > self.max_length:  # exports have symbols
            raise ValueError(
                f"{type(self).__name__} '{self.name}' has {self.max_length} places, received a "
                f"sequence of length {length}. Build the model with a greater `max_length`."
            )
        table = ops.convert_to_tensor(self.table)
        places = start + ops.arange(ops.shape(inputs)[1])
        rows = ops.take(table, places, axis=0)
        return inputs + ops.reshape(rows, (1, -1, width))

    def compute_output_shape(self, input_shape: Any, **kwargs: Any) -> tuple:
        return tuple(input_shape)

    def get_config(self) -> dict:
        return {**super().get_config(), "max_length": self.max_length}
