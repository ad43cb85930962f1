"""The coupling of momentum networks."""

import math
from typing import Any

import keras

from revkeras.couplings.coupling import Coupling


@keras.saving.register_keras_serializable("revkeras")
class Momentum(Coupling):
    """A residual network with a velocity `v`.

    MomentumNet ([Sander et al., 2021](https://arxiv.org/abs/2102.07870)):

        v = beta * v + (1 - beta) * f(x)
        x = x + v

    The streams are `(v, x)`, and they do not change places. With
    `split_axis=None` the input is `x`, the velocity starts at zero, and the
    output is the last `x`.

    Each block divides `v` by `beta` when it is rebuilt, which loses
    `log2(1 / beta)` bits of it. `depth_limit` tells how many blocks that leaves
    exact enough to train with; beyond it the layer warns when it is built.

    Args:
        beta: Float between 0 and 1, what is kept of the velocity.

    Raises:
        ValueError: if `beta` is not between 0 and 1.

    Example:

    >>> import keras, revkeras
    >>> blocks = [keras.layers.Dense(4, activation="tanh") for _ in range(8)]
    >>> layer = revkeras.ReversibleSequential(
    ...     blocks, coupling=revkeras.couplings.Momentum(0.9), split_axis=None)
    >>> layer(keras.ops.ones((2, 4))).shape
    TensorShape([2, 4])
    """

    swaps = False

    def __init__(self, beta: float = 0.9):
        if not 0 < beta < 1:
            raise ValueError(
                "Invalid value for argument `beta`: expected a number between 0 and 1, both "
                f"excluded; received beta={beta!r}."
            )
        self.beta = beta

    def couple(self, streams: list, fx: Any) -> list:
        v, x = streams
        v = self.beta * v + (1 - self.beta) * fx
        return [v, x + v]

    def source(self, outputs: list) -> Any:
        v, x = outputs
        return x - v

    def uncouple(self, outputs: list, fx: Any) -> list:
        v, x = outputs
        return [(v - (1 - self.beta) * fx) / self.beta, x - v]

    def enter(self, x: Any) -> list:
        return [keras.ops.zeros_like(x), x]

    def leave(self, streams: list) -> Any:
        return streams[1]

    def depth_limit(self, dtype: str) -> int | None:
        # Of the significand's bits, the last seven are left to the gradient: an error of 1%.
        bits = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}[dtype]
        return int((bits - 7) / math.log2(1 / self.beta))

    def get_config(self) -> dict:
        return {"beta": self.beta}
