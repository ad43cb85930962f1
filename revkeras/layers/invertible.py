"""What the layers of this package have in common."""

import random
from typing import Any

import keras
from keras import ops

from revkeras._keras import at_least_float32
from revkeras._stack.streams import completed


def check_seed(seed: Any) -> None:
    """Raises unless `seed` is an integer or `None`."""
    if seed is not None and not isinstance(seed, int):
        raise ValueError(
            "Invalid value for argument `seed`: expected an integer or None, received "
            f"seed={seed!r}."
        )


def draw_seed(seed: int | None) -> int:
    """`seed`, or one drawn by Keras's global seed."""
    return random.getrandbits(32) if seed is None else seed


class Invertible(keras.layers.Layer):
    """A Keras layer with an exact inverse.

    A subclass writes `call(inputs)` and `inverse(outputs)`, which undo each other
    with the same weights. As it stands here the layer keeps the input's shape and
    volume. Inputs are channels-last and are processed in their own dtype.

    Attributes:
        rearranges: Whether the layer only moves values, so that the inverse is
            exact bit by bit in any dtype.
    """

    rearranges = False

    def __init__(self, *, dtype: Any = None, **kwargs: Any):
        # Under mixed precision the stream stays in the variable dtype, and so do the weights.
        dtype = keras.config.dtype_policy().variable_dtype if dtype is None else dtype
        super().__init__(dtype=dtype, autocast=False, **kwargs)

    def build(self, input_shape: Any) -> None:
        self.compute_output_shape(input_shape)  # refuses shapes that cannot be
        super().build(input_shape)

    def log_det_jacobian(self, inputs: Any) -> Any:
        """The log of the absolute determinant of the Jacobian of `call`, per example."""
        return self._per_example(0, self._tensor(inputs))

    def compute_output_shape(self, input_shape: Any) -> Any:
        self._channels(input_shape)
        return tuple(input_shape)

    def compute_output_spec(self, inputs: Any, **kwargs: Any) -> Any:
        return keras.tree.map_shape_structure(
            lambda shape: keras.KerasTensor(shape, dtype=inputs.dtype),
            self.compute_output_shape(inputs.shape),
        )

    def _channels(self, input_shape: Any, even: bool = False) -> int:
        shape = completed(input_shape, self.input_spec)
        if len(shape) < 2 or not isinstance(shape[-1], int):
            raise ValueError(
                f"{self._title()} expected inputs of shape (batch, ..., channels), the number of "
                f"channels known, received input_shape={shape}."
            )
        if even and shape[-1] % 2:
            raise ValueError(
                f"{self._title()} expected an even number of channels, received "
                f"input_shape={shape}."
            )
        return shape[-1]

    def _tensor(self, x: Any) -> Any:
        """Makes a tensor of what `inverse` or `log_det_jacobian` is given."""
        if isinstance(x, keras.KerasTensor):
            raise ValueError(
                f"{self._title()} expected a tensor, received a symbolic one, {x}. A functional "
                "model would keep the weights as they are now: use `inverse()` and "
                "`log_det_jacobian()` inside the `call()` of a layer or model."
            )
        return ops.convert_to_tensor(x)

    def _require_weights(self) -> None:
        if not self.built:
            raise ValueError(
                f"{self._title()} has no weights yet. Call it, or `build(input_shape)`, first."
            )

    def _working_dtype(self, inputs: Any) -> str:
        """The inputs' dtype, but for 16 bits float32."""
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        if "float" not in dtype:
            raise ValueError(
                f"{self._title()} expected floating-point inputs, received dtype={dtype!r}."
            )
        return at_least_float32(dtype)

    def _positions(self, inputs: Any) -> Any:
        """How many vectors of channels an example holds."""
        positions = 1
        for size in ops.shape(inputs)[1:-1]:
            positions = positions * size
        return ops.cast(positions, self._working_dtype(inputs))

    def _per_example(self, value: Any, inputs: Any) -> Any:
        return ops.broadcast_to(ops.cast(value, inputs.dtype), (ops.shape(inputs)[0],))

    def _title(self) -> str:
        return f"{type(self).__name__} '{self.name}'"
