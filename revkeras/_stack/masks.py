"""Masks that Keras's layers look for on tensors.

Layers hand masks on from tensor to tensor while a model runs. Operations such as a sum do
not, and a graph of `KerasTensor`s does not show where there will be one: there, `MaskOf`
and `WithMask` do what `mask_of` and `attach_mask` do with tensors.
"""

from typing import Any

import keras

from revkeras._keras import get_keras_mask, set_keras_mask


def mask_of(x: Any) -> Any:
    """The mask that a Keras layer has left on a tensor, or `None`."""
    return get_keras_mask(x)


def attach_mask(x: Any, mask: Any) -> Any:
    """A copy of `x`, with `mask` where Keras layers look for it; `x` if there is no mask."""
    if mask is None:
        return x
    if isinstance(x, keras.KerasTensor):
        return WithMask()([x, mask])
    copy = keras.ops.copy(x)  # `x` may be the caller's own
    set_keras_mask(copy, mask)
    return copy


@keras.saving.register_keras_serializable("revkeras")
class MaskOf(keras.layers.Layer):
    """The mask on a tensor of shape `(..., channels)`, of shape `(...)`; all true without one.

    Example:

    >>> import keras
    >>> from revkeras._stack.masks import MaskOf
    >>> embedded = keras.layers.Embedding(9, 2, mask_zero=True)(keras.ops.array([[3, 0]]))
    >>> MaskOf()(embedded).numpy().tolist()
    [[True, False]]
    """

    def __init__(self, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True

    def call(self, x: Any) -> Any:
        mask = mask_of(x)
        return keras.ops.ones(keras.ops.shape(x)[:-1], "bool") if mask is None else mask

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape[:-1], "bool")

    def compute_mask(self, x: Any, previous_mask: Any = None) -> None:
        return None


@keras.saving.register_keras_serializable("revkeras")
class WithMask(keras.layers.Layer):
    """The first of two tensors, with the second as its mask.

    Example:

    >>> import keras
    >>> from revkeras._stack.masks import WithMask
    >>> x = keras.ops.array([[[1.0], [5.0]]])
    >>> masked = WithMask()([x, keras.ops.array([[True, False]])])
    >>> float(keras.layers.GlobalAveragePooling1D()(masked)[0, 0])
    1.0
    """

    def __init__(self, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True

    def call(self, inputs: list) -> Any:
        return keras.ops.copy(inputs[0])

    def compute_output_spec(self, inputs: list) -> Any:
        return keras.KerasTensor(inputs[0].shape, inputs[0].dtype)

    def compute_mask(self, inputs: list, previous_mask: Any = None) -> Any:
        return inputs[1]


def masked_as(x: Any, like: Any) -> Any:
    """A `KerasTensor` that has the mask that another has when the model runs."""
    return WithMask()([x, MaskOf()(like)])


def makes_masks(layer: keras.layers.Layer) -> bool:
    """Whether a layer may put a mask on what it returns, by itself."""
    if isinstance(layer, keras.layers.Embedding):
        return layer.mask_zero
    known = type(layer).compute_mask.__module__.partition(".")[0] in ("keras", "revkeras")
    return isinstance(layer, keras.layers.Masking) or not known
