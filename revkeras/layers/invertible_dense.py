"""A square matrix on the channels, with its inverse at hand."""

from typing import Any

import keras
import numpy as np
from keras import ops

from revkeras.layers.invertible import Invertible, check_seed, draw_seed


@keras.saving.register_keras_serializable("revkeras")
class InvertibleDense(Invertible):
    """Multiplies the channels of each position by an invertible matrix.

    The invertible 1x1 convolution of Glow ([Kingma and Dhariwal,
    2018](https://arxiv.org/abs/1807.03039)), `outputs = inputs @ W` with

        W = P @ L @ (U + diag(sign * exp(log_scale)))

    where `P` is a fixed permutation, `L` lower triangular with ones on its
    diagonal, and `U` strictly upper triangular. `sign` is fixed, and `L`, `U` and
    `log_scale` are trained. `W` has an inverse whatever their values, if one that
    rounding spoils where `log_scale` is far below zero, and its log determinant
    is `sum(log_scale)`. It starts as a random rotation.

    The matrix is made and inverted in float32 at least, and so is the product;
    outputs have the dtype of the inputs.

    Args:
        seed: Integer, the seed of the rotation, or `None` to draw one by Keras's
            global seed. Defaults to `None`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Raises:
        ValueError: for an input of fewer than two axes, or of integers.

    Input shape:
        `(batch, ..., channels)`, floating-point.

    Output shape:
        The input's.

    Example:

    >>> import keras
    >>> from revkeras.layers import InvertibleDense
    >>> layer = InvertibleDense()
    >>> x = keras.random.normal((2, 8, 8, 4))
    >>> y = layer(x)
    >>> bool(keras.ops.max(keras.ops.abs(layer.inverse(y) - x)) < 1e-4)
    True
    >>> layer.log_det_jacobian(x).shape
    TensorShape([2])
    """

    def __init__(self, seed: int | None = None, **kwargs: Any):
        check_seed(seed)
        super().__init__(**kwargs)
        self.seed = seed
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        channels = self._channels(input_shape)
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: channels})
        seed = draw_seed(self.seed)
        permutation, lu = _factorize(_rotation(channels, seed))
        diagonal = np.diag(lu)
        self.lower = self._add("lower", np.tril(lu, -1))
        self.upper = self._add("upper", np.triu(lu, 1))
        self.log_scale = self._add("log_scale", np.log(np.abs(diagonal)))
        self.sign = self._add("sign", np.sign(diagonal), trainable=False)
        # TensorFlow keeps int32 variables off the GPU, out of XLA's reach.
        self.permutation = self._add("permutation", permutation, trainable=False, dtype="int64")

    def call(self, inputs: Any) -> Any:
        lower, upper = self._factors(self._working_dtype(inputs))
        return self._multiply(inputs, ops.take(lower @ upper, self._rows(), axis=0))

    def inverse(self, outputs: Any) -> Any:
        self._require_weights()
        outputs = self._tensor(outputs)
        dtype = self._working_dtype(outputs)
        lower, upper = self._factors(dtype)
        identity = ops.eye(self.log_scale.shape[0], dtype=dtype)
        inverse = ops.solve_triangular(lower, identity, lower=True)
        inverse = ops.solve_triangular(upper, inverse, lower=False)
        return self._multiply(outputs, ops.take(inverse, self._rows(), axis=1))

    def log_det_jacobian(self, inputs: Any) -> Any:
        self._require_weights()
        inputs = self._tensor(inputs)
        per_position = ops.sum(ops.cast(self.log_scale, self._working_dtype(inputs)))
        return self._per_example(self._positions(inputs) * per_position, inputs)

    def get_config(self) -> dict:
        return {**super().get_config(), "seed": self.seed}

    def _factors(self, dtype: str) -> tuple[Any, Any]:
        lower, upper = ops.cast(self.lower, dtype), ops.cast(self.upper, dtype)
        sign, log_scale = ops.cast(self.sign, dtype), ops.cast(self.log_scale, dtype)
        lower = ops.tril(lower, -1) + ops.eye(lower.shape[0], dtype=dtype)
        return lower, ops.triu(upper, 1) + ops.diag(sign * ops.exp(log_scale))

    def _rows(self) -> Any:
        return ops.convert_to_tensor(self.permutation)

    def _multiply(self, x: Any, matrix: Any) -> Any:
        return ops.cast(ops.matmul(ops.cast(x, matrix.dtype), matrix), x.dtype)

    def _add(
        self, name: str, value: np.ndarray, trainable: bool = True, dtype: str | None = None
    ) -> keras.Variable:
        return self.add_weight(
            shape=value.shape,
            initializer=keras.initializers.Constant(value),
            dtype=dtype,
            trainable=trainable,
            autocast=False,
            name=name,
        )


def _rotation(size: int, seed: int) -> np.ndarray:
    """A rotation or reflection, uniform among all: no direction is preferred."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))
    return q * np.sign(np.diag(r))


def _factorize(matrix: np.ndarray, width: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """LU with partial pivoting, `width` columns at a time.

    Returns `(permutation, lu)`, where `lu` holds the upper factor and, below its
    diagonal, the lower one: `matrix == (lower @ upper)[permutation]`.
    """
    lu, rows = matrix.copy(), np.arange(len(matrix))
    for start in range(0, len(lu), width):
        stop = min(start + width, len(lu))
        for k in range(start, stop):
            pivot = k + np.argmax(np.abs(lu[k:, k]))
            lu[[k, pivot]], rows[[k, pivot]] = lu[[pivot, k]], rows[[pivot, k]]
            lu[k + 1 :, k] /= lu[k, k]
            lu[k + 1 :, k + 1 : stop] -= np.outer(lu[k + 1 :, k], lu[k, k + 1 : stop])
        lower = np.tril(lu[start:stop, start:stop], -1) + np.eye(stop - start)
        lu[start:stop, stop:] = np.linalg.solve(lower, lu[start:stop, stop:])
        lu[stop:, stop:] -= lu[stop:, start:stop] @ lu[start:stop, stop:]
    return np.argsort(rows), lu
