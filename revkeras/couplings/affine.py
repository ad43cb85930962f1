"""The coupling of normalizing flows."""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from revkeras._keras import at_least_float32
from revkeras._stack.streams import same_shape
from revkeras.couplings.coupling import Coupling
from revkeras.couplings.functions import serialize

# Each with its logarithm, which would be that of a rounded zero far from `s = 0`.
SCALES = {
    "sigmoid": (
        lambda s: 2 * keras.ops.sigmoid(s),
        lambda s: math.log(2) + keras.ops.log_sigmoid(s),
    ),
    "exp": (keras.ops.exp, lambda s: s),
}


@keras.saving.register_keras_serializable("revkeras")
class Affine(Coupling):
    """`y = x * scale(s) + t`, where the block returns `t` and `s`.

    The coupling of RealNVP ([Dinh et al., 2017](https://arxiv.org/abs/1605.08803))
    and Glow ([Kingma and Dhariwal, 2018](https://arxiv.org/abs/1807.03039)).

    Args:
        scale: `"sigmoid"`, which is `2 * sigmoid(s)`, `"exp"`, or a function of a
            tensor that is nowhere zero. Both named ones are 1 at `s = 0`, so a
            block that starts at zero starts as the identity, and a deep stack
            keeps its digits. Defaults to `"sigmoid"`.
        axis: Integer, the axis on which the block's output holds `t` and then
            `s`, if it is one tensor. Defaults to `-1`.

    A block returns one tensor with twice the stream's size on `axis`, or a tuple
    that starts with two tensors of the stream's shape, `t` and `s`.

    Raises:
        ValueError: for an unknown `scale`, or one that comes near zero on
            [-10, 10].

    Example:

    >>> import keras, revkeras
    >>> blocks = [keras.layers.Dense(2 * 2) for _ in range(2)]
    >>> layer = revkeras.ReversibleSequential(blocks, coupling="affine")
    >>> layer(keras.ops.ones((3, 4))).shape
    TensorShape([3, 4])
    """

    n_updates = 2

    def __init__(self, scale: str | Callable = "sigmoid", axis: int = -1):
        if not callable(scale) and scale not in SCALES:
            raise ValueError(
                f"Invalid value for argument `scale`: expected one of {sorted(SCALES)} or a "
                f"function of a tensor, received scale={scale!r}."
            )
        if isinstance(axis, bool) or not isinstance(axis, int):
            raise ValueError(
                f"Invalid value for argument `axis`: expected an integer, received axis={axis!r}."
            )
        self.scale = scale
        self.axis = axis
        self._scale, self._log_scale = (
            (scale, lambda s: keras.ops.log(keras.ops.abs(scale(s))))
            if callable(scale)
            else SCALES[scale]
        )
        self._refuse_zero_scale()

    def forward(self, x: Any, fx: Any) -> Any:
        shift, s = fx
        return x * self._scale(s) + shift

    def inverse(self, y: Any, fx: Any) -> Any:
        shift, s = fx
        return (y - shift) / self._scale(s)

    def log_det(self, fx: Any, stream: Any) -> Any:
        s = fx[1]
        log_scale = self._log_scale(keras.ops.cast(s, at_least_float32(s.dtype)))
        return keras.ops.sum(log_scale, axis=tuple(range(1, len(log_scale.shape))))

    def separate(self, outputs: Any, stream: Any) -> tuple[Any, list]:
        outputs = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
        if len(outputs) > 1 and all(same_shape(o.shape, stream.shape) for o in outputs[:2]):
            return tuple(outputs[:2]), outputs[2:]
        expected = list(stream.shape)
        if not -len(expected) < self.axis < len(expected):
            raise ValueError(
                f"stands on a stream of shape {tuple(expected)}, which has no axis {self.axis} "
                "for the affine coupling"
            )
        expected[self.axis] = expected[self.axis] and 2 * expected[self.axis]
        if not same_shape(outputs[0].shape, expected):
            raise ValueError(
                "must return a shift and a scale for the affine coupling: expected one tensor of "
                f"shape {tuple(expected)}, or two of shape {tuple(stream.shape)}; received "
                f"{[tuple(o.shape) for o in outputs]}"
            )
        return tuple(keras.ops.split(outputs[0], 2, axis=self.axis)), outputs[1:]

    def get_config(self) -> dict:
        scale = serialize(self.scale, "scale") if callable(self.scale) else self.scale
        return {"scale": scale, "axis": self.axis}

    @classmethod
    def from_config(cls, config: dict) -> "Affine":
        scale = config["scale"]
        if not isinstance(scale, str):
            scale = keras.saving.deserialize_keras_object(scale)
        return cls(**{**config, "scale": scale})

    def _refuse_zero_scale(self) -> None:
        s = np.linspace(-10, 10, 201).astype("float32")
        signed = keras.ops.convert_to_numpy(self._scale(keras.ops.convert_to_tensor(s)))
        values = np.abs(signed)
        crossed = np.flatnonzero(np.diff(np.sign(signed)))
        if crossed.size:
            raise ValueError(
                "Invalid value for argument `scale`: a stream multiplied by zero cannot be "
                f"rebuilt, and scale(s) changes its sign between s={s[crossed[0]]:.3g} and "
                f"s={s[crossed[0] + 1]:.3g}. Expected a function that stays away from zero, such "
                "as 'sigmoid' or 'exp'."
            )
        if not values.min() > 1e-6:
            raise ValueError(
                "Invalid value for argument `scale`: a stream multiplied by zero cannot be "
                f"rebuilt, and scale({s[values.argmin()]:.3g}) is {values.min():.3g}. Expected a "
                "function that stays away from zero, such as 'sigmoid' or 'exp'."
            )
