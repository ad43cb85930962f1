"""Half of the channels leaves."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from revkeras.layers.invertible import Invertible


@keras.saving.register_keras_serializable("revkeras")
class Split(Invertible):
    """Lets the first half of the channels go on and the second half leave.

    The multi-scale architecture of RealNVP ([Dinh et al.,
    2017](https://arxiv.org/abs/1605.08803)). In a `ReversibleSequential` list it
    takes half of the channels out of the stack, as a further output.

    Args:
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Returns:
        A tuple of two tensors, `(kept, latent)`. `inverse()` takes such a tuple
        and concatenates it.

    Raises:
        ValueError: for an odd number of channels.

    Input shape:
        `(batch, ..., channels)`, channels even, any dtype.

    Output shape:
        Two times `(batch, ..., channels // 2)`.

    Example:

    >>> import keras
    >>> from revkeras.layers import Split
    >>> layer = Split()
    >>> kept, latent = layer(keras.ops.convert_to_tensor([[1, 2, 3, 4]]))
    >>> kept.numpy().tolist(), latent.numpy().tolist()
    ([[1, 2]], [[3, 4]])
    >>> layer.inverse((kept, latent)).numpy().tolist()
    [[1, 2, 3, 4]]
    """

    rearranges = True

    def call(self, inputs: Any) -> tuple[Any, Any]:
        self._channels(inputs.shape, even=True)
        kept, latent = ops.split(inputs, 2, axis=-1)
        return kept, latent

    def inverse(self, outputs: Sequence) -> Any:
        if not isinstance(outputs, (tuple, list)) or len(outputs) != 2:
            raise ValueError(
                "Invalid value for argument `outputs`: expected a tuple (kept, latent), received "
                f"outputs={outputs!r}."
            )
        return ops.concatenate([self._tensor(half) for half in outputs], axis=-1)

    def compute_output_shape(self, input_shape: Any) -> tuple[tuple, tuple]:
        half = (*input_shape[:-1], self._channels(input_shape, even=True) // 2)
        return half, half
