"""Normalization by the first batch."""

from typing import Any

import keras
from keras import ops

from revkeras.layers.invertible import Invertible


@keras.saving.register_keras_serializable("revkeras")
class ActNorm(Invertible):
    """Scales and shifts each channel, so that the first batch comes out standardized.

    The activation normalization of Glow ([Kingma and Dhariwal,
    2018](https://arxiv.org/abs/1807.03039)):

        outputs = (inputs - mean) * exp(log_scale - log_std) + bias

    `mean` and `log_std` are taken from the first batch that comes with
    `training=True`, and then stay; no gradient goes through them. `log_scale` and
    `bias` are trained and start at zero. Before that first batch the layer is
    the identity. In a stack whose input is given as two tensors, that batch is
    the first stream's.

    The arithmetic is in float32 at least; outputs have the dtype of the inputs.

    Under a `ZeroStrategy` of several workers, `fit` starts the layer from the whole
    global batch. Under a multi-replica strategy of TensorFlow each replica would start
    from its own share of the batch, and the first one's statistics would stay: start
    the layer before, with one plain call on a batch and `training=True`.

    Args:
        epsilon: Positive float. A channel whose standard deviation is smaller
            counts as constant: it is shifted, but not scaled, since what blows
            it up would blow up the rounding of its inverse. Defaults to `1e-6`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: A floating-point tensor.
        training: Boolean, whether the layer may start.

    Raises:
        ValueError: for a bad `epsilon`, an input of fewer than two axes, or of
            integers.

    Input shape:
        `(batch, ..., channels)`, floating-point.

    Output shape:
        The input's.

    Example:

    >>> import keras
    >>> from revkeras.layers import ActNorm
    >>> layer = ActNorm()
    >>> x = keras.ops.convert_to_tensor([[1.0, 0.0], [3.0, 10.0]])
    >>> layer(x, training=True).numpy().round(3).tolist()
    [[-1.0, -1.0], [1.0, 1.0]]
    >>> layer(keras.ops.convert_to_tensor([[5.0, 5.0]])).numpy().round(3).tolist()
    [[3.0, 0.0]]
    """

    def __init__(self, epsilon: float = 1e-6, **kwargs: Any):
        if not isinstance(epsilon, (int, float)) or isinstance(epsilon, bool) or not epsilon > 0:
            raise ValueError(
                "Invalid value for argument `epsilon`: expected a positive float, received "
                f"epsilon={epsilon!r}."
            )
        super().__init__(**kwargs)
        self.epsilon = epsilon
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        shape = (self._channels(input_shape),)
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: shape[0]})
        self.log_scale = self._add("log_scale", shape)
        self.bias = self._add("bias", shape)
        self.mean = self._add("mean", shape, trainable=False)
        self.log_std = self._add("log_std", shape, trainable=False)
        self.started = self._add("started", (), trainable=False, dtype="bool")

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        dtype = self._working_dtype(inputs)
        x = ops.cast(inputs, dtype)
        mean, log_std = self._started_by(x) if training else (self.mean, self.log_std)
        mean, scale = ops.cast(mean, dtype), self._scale(log_std, dtype)
        return ops.cast((x - mean) * scale + ops.cast(self.bias, dtype), inputs.dtype)

    def inverse(self, outputs: Any) -> Any:
        self._require_weights()
        outputs = self._tensor(outputs)
        dtype = self._working_dtype(outputs)
        y = ops.cast(outputs, dtype) - ops.cast(self.bias, dtype)
        x = y / self._scale(self.log_std, dtype) + ops.cast(self.mean, dtype)
        return ops.cast(x, outputs.dtype)

    def log_det_jacobian(self, inputs: Any) -> Any:
        """Of the layer as it is now: in the step that starts it, ask after the call."""
        self._require_weights()
        inputs = self._tensor(inputs)
        dtype = self._working_dtype(inputs)
        log_scale = ops.cast(self.log_scale, dtype) - ops.cast(self.log_std, dtype)
        return self._per_example(self._positions(inputs) * ops.sum(log_scale), inputs)

    def get_config(self) -> dict:
        return {**super().get_config(), "epsilon": self.epsilon}

    def _started_by(self, x: Any) -> tuple[Any, Any]:
        """The stored statistics; those of `x`, which are then stored, if there are none yet."""
        x = ops.stop_gradient(x)
        # Copies: on TensorFlow a variable stands for itself, not for the value it has now.
        started, *stored = [ops.copy(v) for v in (self.started, self.mean, self.log_std)]

        def start() -> tuple[Any, Any]:
            axes = list(range(len(x.shape) - 1))
            mean = self._over_batch(ops.mean(x, axis=axes))
            std = ops.sqrt(self._over_batch(ops.mean(ops.square(x - mean), axis=axes)))
            log_std = ops.log(ops.where(std < self.epsilon, 1, std))
            return ops.cast(mean, self.mean.dtype), ops.cast(log_std, self.log_std.dtype)

        mean, log_std = ops.cond(started, lambda: tuple(stored), start)
        # Assigned whether new or not: inside a branch of `cond`, a `StatelessScope` would be
        # left with a tensor of the branch.
        self.mean.assign(mean)
        self.log_std.assign(log_std)
        self.started.assign(True)
        return mean, log_std

    def _over_batch(self, mean: Any) -> Any:
        """The batch's mean, of the inputs' mean. Workers that have a part each replace this."""
        return mean

    def _scale(self, log_std: Any, dtype: str) -> Any:
        return ops.exp(ops.cast(self.log_scale, dtype) - ops.cast(log_std, dtype))

    def _add(
        self, name: str, shape: tuple, trainable: bool = True, dtype: str | None = None
    ) -> keras.Variable:
        return self.add_weight(
            shape=shape,
            initializer="zeros",
            dtype=dtype,
            trainable=trainable,
            autocast=False,
            aggregation="none" if trainable else "only_first_replica",
            name=name,
        )
