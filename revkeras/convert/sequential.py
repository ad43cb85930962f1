"""A list of blocks, made a reversible stack."""

from collections.abc import Sequence
from typing import Any

import keras

from revkeras._stack.reversible_sequential import ReversibleSequential
from revkeras._stack.stack_checks import check_layers
from revkeras.convert.residual import Residual


def to_reversible(
    model_or_layers: keras.Sequential | Sequence[keras.layers.Layer],
    residual: bool = False,
    **kwargs: Any,
) -> ReversibleSequential:
    """Makes a stack of blocks a reversible one, with the same layers and weights.

    The whole input goes into both streams, and the output is their mean, so that
    blocks keep their width, and the stack takes what the blocks took. What it
    computes is another function: reversible, as in
    [Gomez et al., 2017](https://arxiv.org/abs/1707.04585), and to be trained.
    `revkeras.to_momentum_net` keeps the function.

    Args:
        model_or_layers: A `keras.Sequential`, or a list of Keras layers or models,
            all of which keep their input's shape.
        residual: Boolean, whether the blocks add to their input themselves.
            That skip connection is taken away, `f(x) = block(x) - x`, for the
            stack has its own. Defaults to `False`.
        **kwargs: Arguments of `revkeras.ReversibleSequential`, such as `coupling`.
            `split_axis` is `None` where it is left out.

    Returns:
        A `revkeras.ReversibleSequential`.

    Raises:
        TypeError: for what is neither a `keras.Sequential` nor a list of layers.
        ValueError: when the stack is built, for a block that changes the shape,
            and with `residual=True` for one that is not residual.

    Example:

    >>> import keras, revkeras
    >>> def block():
    ...     x = keras.Input((8,))
    ...     return keras.Model(x, x + keras.layers.Dense(8, activation="tanh")(x))
    >>> model = keras.Sequential([block() for _ in range(4)])
    >>> stack = revkeras.to_reversible(model, residual=True)
    >>> stack(keras.ops.ones((2, 8))).shape
    TensorShape([2, 8])
    """
    is_sequential = isinstance(model_or_layers, keras.Sequential)
    if isinstance(model_or_layers, keras.layers.Layer) and not is_sequential:
        raise TypeError(
            "Invalid value for argument `model_or_layers`: expected a `keras.Sequential` or a list "
            f"of layers, received {model_or_layers!r} (of type "
            f"{type(model_or_layers).__name__}). Use `revkeras.to_momentum_net` for other models."
        )
    layers = model_or_layers.layers if is_sequential else model_or_layers
    check_layers(layers, "model_or_layers")
    if not isinstance(residual, bool):
        raise TypeError(
            "Invalid value for argument `residual`: expected a boolean, received "
            f"residual={residual!r}."
        )
    if residual:
        wrapped = {id(layer): Residual(layer) for layer in layers}  # one for a shared layer
        layers = [wrapped[id(layer)] for layer in layers]
    if is_sequential:
        kwargs = {"name": model_or_layers.name, **kwargs}
    return ReversibleSequential(layers, **{"split_axis": None, **kwargs})
