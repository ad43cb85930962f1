"""Channels in another order."""

import operator
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from revkeras.layers.invertible import Invertible, check_seed, draw_seed


@keras.saving.register_keras_serializable("revkeras")
class Permute(Invertible):
    """Puts the channels in another, fixed order.

    `outputs[..., i] = inputs[..., order[i]]`. Between couplings it lets every
    channel act on every other one.

    Args:
        order: A list that holds each of `0` to `channels - 1` once, or `None` for
            a random order, drawn when the layer is built and saved with its
            weights. Defaults to `None`.
        seed: Integer, the seed of the random order, or `None` to draw one by
            Keras's global seed. Defaults to `None`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Raises:
        ValueError: for an `order` that is no permutation of the channels, or
            given together with a `seed`.

    Input shape:
        `(batch, ..., channels)`, any dtype.

    Output shape:
        The input's.

    Example:

    >>> import keras
    >>> from revkeras.layers import Permute
    >>> layer = Permute([2, 0, 1])
    >>> y = layer(keras.ops.convert_to_tensor([[10, 11, 12]]))
    >>> y.numpy().tolist()
    [[12, 10, 11]]
    >>> layer.inverse(y).numpy().tolist()
    [[10, 11, 12]]
    """

    rearranges = True

    def __init__(self, order: Sequence[int] | None = None, seed: int | None = None, **kwargs: Any):
        if order is not None and seed is not None:
            raise ValueError(
                "Invalid value for argument `seed`: expected None where an order is given, "
                f"received seed={seed!r} and order={order!r}."
            )
        check_seed(seed)
        super().__init__(**kwargs)
        self.order = None if order is None else _check_order(order)
        self.seed = seed
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        channels = self._channels(input_shape)
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: channels})
        if self.order is None:
            seed = draw_seed(self.seed)
            order = np.random.default_rng(seed).permutation(channels)
            self._drawn_order = self.add_weight(
                shape=(channels,),
                initializer=keras.initializers.Constant(order),
                dtype="int64",  # TensorFlow keeps int32 variables off the GPU, out of XLA's reach
                trainable=False,
                name="order",
            )

    def call(self, inputs: Any) -> Any:
        return ops.take(inputs, self._order(), axis=-1)

    def inverse(self, outputs: Any) -> Any:
        return ops.take(self._tensor(outputs), ops.argsort(self._order()), axis=-1)

    def compute_output_shape(self, input_shape: Any) -> tuple:
        channels = self._channels(input_shape)
        if self.order is not None and len(self.order) != channels:
            raise ValueError(
                f"{self._title()} expected as many channels as its order has entries, "
                f"{len(self.order)}, received input_shape={tuple(input_shape)}."
            )
        return tuple(input_shape)

    def get_config(self) -> dict:
        order = None if self.order is None else list(self.order)
        return {**super().get_config(), "order": order, "seed": self.seed}

    def _order(self) -> Any:
        if self.order is not None:
            return ops.convert_to_tensor(self.order)
        self._require_weights()
        return ops.convert_to_tensor(self._drawn_order)


@keras.saving.register_keras_serializable("revkeras")
class Reverse(Invertible):
    """Reverses the order of the channels.

    It is its own inverse, and has no weights.

    Args:
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Raises:
        ValueError: for an input of fewer than two axes.

    Input shape:
        `(batch, ..., channels)`, any dtype.

    Output shape:
        The input's.

    Example:

    >>> import keras
    >>> from revkeras.layers import Reverse
    >>> Reverse()(keras.ops.convert_to_tensor([[1, 2, 3]])).numpy().tolist()
    [[3, 2, 1]]
    """

    rearranges = True

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        return ops.flip(inputs, axis=-1)

    def inverse(self, outputs: Any) -> Any:
        return ops.flip(self._tensor(outputs), axis=-1)


def _check_order(order: Any) -> tuple[int, ...]:
    try:
        entries = tuple(operator.index(i) for i in order)
    except TypeError:
        entries = ()
    if not entries:
        raise ValueError(
            "Invalid value for argument `order`: expected a list of integers or None, received "
            f"order={order!r}."
        )
    faults = {
        "misses": sorted(set(range(len(entries))) - set(entries)),
        "repeats": sorted({i for i in entries if entries.count(i) > 1}),
        "goes out of range with": sorted({i for i in entries if not 0 <= i < len(entries)}),
    }
    if any(faults.values()):
        what = " and ".join(f"{fault} {which}" for fault, which in faults.items() if which)
        raise ValueError(
            f"Invalid value for argument `order`: expected each of 0 to {len(entries) - 1} once, "
            f"received order={list(entries)}, which {what}."
        )
    return entries
