"""What a residual block adds to its input."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import keras

from revkeras._keras import call_signature, set_call_signature
from revkeras._stack.call_arguments import required_arguments
from revkeras._stack.stateless import is_built
from revkeras.convert.layer_calls import layer_calls

# The block that is called as it was before a conversion took its place.
_ORIGINAL: contextvars.ContextVar = contextvars.ContextVar("original", default=None)


@contextlib.contextmanager
def original(block: keras.layers.Layer) -> Iterator[None]:
    """Inside, `block` acts as it did before it was converted."""
    token = _ORIGINAL.set(block)
    try:
        yield
    finally:
        _ORIGINAL.reset(token)


def is_original(block: keras.layers.Layer) -> bool:
    """Whether `block` is to act as it did before it was converted."""
    return _ORIGINAL.get() is block


class Original(keras.layers.Layer):
    """A block as it was before it was converted. It lives inside a converted model alone."""

    def __init__(self, block: keras.layers.Layer):
        super().__init__(dtype=block.dtype_policy, autocast=False, name=f"{block.name}_original")
        self.block = block
        self.built = True
        self.supports_masking = block.supports_masking
        self.supports_jit = block.supports_jit
        set_call_signature(self, call_signature(block))

    def call(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        with original(self.block):
            return self.block(*args, training=training, **kwargs)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return self.block.compute_output_spec(*args, **kwargs)


@keras.saving.register_keras_serializable("revkeras")
class Residual(keras.layers.Layer):
    """`f(x) = block(x) - x`, for a block that adds `f(x)` to its input itself.

    A block that returns a tuple gives the tensor to subtract from first; the rest
    is returned beside the difference.

    Args:
        block: A Keras layer or model.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Raises:
        ValueError: when it is built, if the block's input does not reach its output
            through additions alone.

    Example:

    >>> import keras
    >>> from revkeras.convert.residual import Residual
    >>> x = keras.Input((4,))
    >>> block = keras.Model(x, x + keras.layers.Dense(4, kernel_initializer="zeros")(x))
    >>> Residual(block)(keras.ops.ones((1, 4))).numpy().tolist()
    [[0.0, 0.0, 0.0, 0.0]]
    """

    def __init__(self, block: keras.layers.Layer, **kwargs: Any):
        kwargs = {"dtype": block.dtype_policy, "name": f"{block.name}_residual", **kwargs}
        super().__init__(**{**kwargs, "autocast": False})
        self.block = block
        self.unchecked = False
        self.supports_masking = block.supports_masking
        self.supports_jit = block.supports_jit
        set_call_signature(self, call_signature(block))

    def build(self, x_shape: Any, **shapes: Any) -> None:
        self.unchecked = bool(required_arguments(self.block))  # which a call alone knows
        if not self.unchecked:
            x = keras.KerasTensor(x_shape, dtype=self.variable_dtype)
            if not is_built(self.block):
                self.block(x)
            _check_residual(self.block, x, {})
        self.built = True

    def call(self, x: Any, training: bool | None = None, **arguments: Any) -> Any:
        outputs = self.block(x, training=training, **arguments)
        return difference(outputs, x)

    def compute_output_spec(self, x: Any, **arguments: Any) -> Any:
        arguments.pop("training", None)
        outputs = self.block(x, **arguments)
        if self.unchecked:
            self.unchecked = False
            _check_residual(self.block, x, arguments)
        first, *rest = outputs if isinstance(outputs, (tuple, list)) else [outputs]
        update = keras.KerasTensor(first.shape, dtype=x.dtype)
        return (update, *rest) if rest else update

    def get_config(self) -> dict:
        return {**super().get_config(), "block": keras.saving.serialize_keras_object(self.block)}

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "Residual":
        block = keras.saving.deserialize_keras_object(config.pop("block"), custom_objects)
        return cls(block, **config)


def difference(outputs: Any, x: Any) -> Any:
    """What a block returned, less what it was called on."""
    several = isinstance(outputs, (tuple, list))
    first, *rest = outputs if several else [outputs]
    update = keras.ops.cast(first, x.dtype) - x
    return (update, *rest) if several else update


def _check_residual(block: keras.layers.Layer, x: Any, arguments: dict) -> None:
    name = f"Block '{block.name}' (of type {type(block).__name__})"
    # A known batch of one would be broadcast, by other operations than an addition.
    batch = x.shape[0]
    x, arguments = keras.tree.map_structure(lambda t: _of_any(batch, t), (x, arguments))
    shape = x.shape
    output = keras.tree.flatten(block(x, **arguments))[0]
    if tuple(output.shape) != tuple(shape):
        raise ValueError(
            f"{name} is not residual: it takes the shape {tuple(shape)} to "
            f"{tuple(output.shape)}, so it cannot add to its input. Pass `residual=False` for "
            "blocks without a skip connection, and leave out those that change the shape."
        )
    tensors = {k: v for k, v in arguments.items() if _is_of_tensors(v)}
    others = {k: v for k, v in arguments.items() if k not in tensors}

    def function(x: Any, tensors: dict) -> Any:
        return block(x, **tensors, **others)

    (call,) = layer_calls(function, [x, tensors], [block])
    if not call.keeps_input:
        raise ValueError(
            f"{name} is not residual: its input does not reach its output through additions "
            "alone, so there is no skip connection to take away. Pass `residual=False` for blocks "
            "without one, or use `to_momentum_net`, which takes blocks as they are."
        )


def _of_any(batch: int | None, x: Any) -> Any:
    if not isinstance(x, keras.KerasTensor) or x.shape[:1] != (batch,):
        return x
    return keras.KerasTensor((None, *x.shape[1:]), dtype=x.dtype)


def _is_of_tensors(structure: Any) -> bool:
    return all(isinstance(x, keras.KerasTensor) for x in keras.tree.flatten(structure))
