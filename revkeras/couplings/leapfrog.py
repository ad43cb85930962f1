"""The coupling of second-order networks."""

import numbers
from typing import Any

import keras

from revkeras.couplings.coupling import Coupling


@keras.saving.register_keras_serializable("revkeras")
class Leapfrog(Coupling):
    """`x[t+1] = 2 x[t] - x[t-1] + step**2 * f(x[t])`.

    The discretized wave equation of
    [Chang et al., 2018](https://arxiv.org/abs/1709.03698).

    The streams are `(x[t-1], x[t])`. With `split_axis=None` both start as the
    input, and the output is the last `x`.

    Args:
        step: Float, the step size `h` of the scheme. Defaults to `1.0`.

    Example:

    >>> import keras, revkeras
    >>> blocks = [keras.layers.Dense(4, activation="tanh") for _ in range(8)]
    >>> layer = revkeras.ReversibleSequential(
    ...     blocks, coupling=revkeras.couplings.Leapfrog(0.1), split_axis=None)
    >>> layer(keras.ops.ones((2, 4))).shape
    TensorShape([2, 4])
    """

    def __init__(self, step: float = 1.0):
        if not isinstance(step, numbers.Real) or not step > 0:
            raise ValueError(
                "Invalid value for argument `step`: expected a positive number, received "
                f"step={step!r}."
            )
        self.step = step

    def couple(self, streams: list, fx: Any) -> list:
        before, now = streams
        return [now, 2 * now - before + self.step**2 * fx]

    def uncouple(self, outputs: list, fx: Any) -> list:
        now, after = outputs
        return [2 * now - after + self.step**2 * fx, now]

    def log_det(self, fx: Any, stream: Any) -> Any:
        return keras.ops.zeros((keras.ops.shape(stream)[0],), dtype=stream.dtype)

    def leave(self, streams: list) -> Any:
        return streams[1]

    def get_config(self) -> dict:
        return {"step": self.step}
