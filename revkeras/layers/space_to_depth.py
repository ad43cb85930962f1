"""Space moved into channels, and back."""

import numbers
from typing import Any

import keras
from keras import ops

from revkeras.layers.invertible import Invertible


class _Blocks(Invertible):
    """What both directions share: the block size, and the shapes."""

    rearranges = True

    def __init__(self, block_size: int = 2, **kwargs: Any):
        is_integer = isinstance(block_size, numbers.Integral) and not isinstance(block_size, bool)
        if not is_integer or block_size < 2:
            raise ValueError(
                "Invalid value for argument `block_size`: expected an integer of at least 2, "
                f"received block_size={block_size!r}."
            )
        super().__init__(**kwargs)
        self.block_size = int(block_size)

    def get_config(self) -> dict:
        return {**super().get_config(), "block_size": self.block_size}

    def _to_depth(self, x: Any) -> Any:
        self._deep_shape(x.shape)
        b, n = self.block_size, len(x.shape) - 2
        batch, *space, channels = ops.shape(x)
        space = [size // b for size in space]
        x = ops.reshape(x, (batch, *(s for size in space for s in (size, b)), channels))
        positions, offsets = range(1, 2 * n, 2), range(2, 2 * n + 1, 2)
        x = ops.transpose(x, (0, *positions, *offsets, 2 * n + 1))
        return ops.reshape(x, (batch, *space, channels * b**n))

    def _to_space(self, x: Any) -> Any:
        self._wide_shape(x.shape)
        b, n = self.block_size, len(x.shape) - 2
        batch, *space, channels = ops.shape(x)
        channels //= b**n
        x = ops.reshape(x, (batch, *space, *[b] * n, channels))
        pairs = [axis for i in range(1, n + 1) for axis in (i, n + i)]
        x = ops.transpose(x, (0, *pairs, 2 * n + 1))
        return ops.reshape(x, (batch, *(size * b for size in space), channels))

    def _deep_shape(self, shape: Any) -> tuple:
        batch, *space, channels = self._check_rank(shape)
        if any(size is not None and size % self.block_size for size in space):
            raise ValueError(
                f"{self._title()} expected spatial sizes divisible by "
                f"block_size={self.block_size}, received shape={tuple(shape)}."
            )
        space = [None if size is None else size // self.block_size for size in space]
        return (batch, *space, channels * self.block_size ** len(space))

    def _wide_shape(self, shape: Any) -> tuple:
        batch, *space, channels = self._check_rank(shape)
        if channels % self.block_size ** len(space):
            raise ValueError(
                f"{self._title()} expected a number of channels divisible by block_size ** "
                f"{len(space)} = {self.block_size ** len(space)}, received shape={tuple(shape)}."
            )
        space = [None if size is None else size * self.block_size for size in space]
        return (batch, *space, channels // self.block_size ** len(space))

    def _check_rank(self, shape: Any) -> tuple:
        shape = tuple(shape)
        if not 3 <= len(shape) <= 5 or not isinstance(shape[-1], int):
            raise ValueError(
                f"{self._title()} expected one, two or three spatial axes, as in (batch, height, "
                f"width, channels), the number of channels known, received shape={shape}."
            )
        return shape


@keras.saving.register_keras_serializable("revkeras")
class SpaceToDepth(_Blocks):
    """Moves each block of positions into the channels.

    The "squeeze" of RealNVP ([Dinh et al., 2017](https://arxiv.org/abs/1605.08803))
    and Glow ([Kingma and Dhariwal, 2018](https://arxiv.org/abs/1807.03039)), and
    the invertible downsampling of i-RevNet ([Jacobsen et al.,
    2018](https://arxiv.org/abs/1802.07088)). Output channels are ordered by the
    offset in the block first, as in `tf.nn.space_to_depth`.

    Args:
        block_size: Integer of at least 2, the block's size on each spatial axis.
            Defaults to `2`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Raises:
        ValueError: for a bad `block_size`, an input without one to three spatial
            axes, or a size that `block_size` does not divide.

    Input shape:
        `(batch, length, channels)`, `(batch, height, width, channels)` or
        `(batch, depth, height, width, channels)`, any dtype.

    Output shape:
        The spatial sizes divided by `block_size`, and the channels multiplied by
        `block_size` once for each of them.

    Example:

    >>> import keras
    >>> from revkeras.layers import SpaceToDepth
    >>> layer = SpaceToDepth()
    >>> y = layer(keras.ops.reshape(keras.ops.arange(8), (1, 4, 2)))
    >>> y.numpy().tolist()
    [[[0, 1, 2, 3], [4, 5, 6, 7]]]
    >>> layer.inverse(y).shape
    TensorShape([1, 4, 2])
    """

    def call(self, inputs: Any) -> Any:
        return self._to_depth(inputs)

    def inverse(self, outputs: Any) -> Any:
        return self._to_space(self._tensor(outputs))

    def compute_output_shape(self, input_shape: Any) -> tuple:
        return self._deep_shape(input_shape)


@keras.saving.register_keras_serializable("revkeras")
class DepthToSpace(_Blocks):
    """Moves channels out into blocks of positions: the inverse of `SpaceToDepth`.

    Args:
        block_size: Integer of at least 2, the block's size on each spatial axis.
            Defaults to `2`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Raises:
        ValueError: for a bad `block_size`, an input without one to three spatial
            axes, or channels that `block_size` does not divide once for each.

    Input shape:
        `(batch, length, channels)`, `(batch, height, width, channels)` or
        `(batch, depth, height, width, channels)`, any dtype.

    Output shape:
        The spatial sizes multiplied by `block_size`, and the channels divided by
        `block_size` once for each of them.

    Example:

    >>> import keras
    >>> from revkeras.layers import DepthToSpace
    >>> DepthToSpace()(keras.ops.ones((2, 3, 3, 8))).shape
    TensorShape([2, 6, 6, 2])
    """

    def call(self, inputs: Any) -> Any:
        return self._to_space(inputs)

    def inverse(self, outputs: Any) -> Any:
        return self._to_depth(self._tensor(outputs))

    def compute_output_shape(self, input_shape: Any) -> tuple:
        return self._wide_shape(input_shape)
