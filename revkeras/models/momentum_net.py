"""MomentumNet: a residual network with a velocity."""

from collections.abc import Sequence
from typing import Any

import keras

from revkeras._stack.reversible_sequential import ReversibleSequential
from revkeras._stack.stack_checks import check_layers
from revkeras.couplings import Momentum
from revkeras.models.top import check_top, with_weights


def MomentumNet(
    functions: Sequence[keras.layers.Layer],
    include_top: bool = True,
    input_shape: tuple | None = None,
    classes: int = 1000,
    classifier_activation: Any = "softmax",
    *,
    beta: float = 0.9,
    exact: bool = False,
    initial_velocity: str = "zeros",
    weights: str | None = None,
    memory_mode: str = "reversible",
    name: str = "momentum_net",
) -> keras.Model:
    """A momentum residual network of a list of residual functions.

    It takes the input `x` and a velocity `v`, which starts at zero, through

        v = beta * v + (1 - beta) * f(x)
        x = x + v

    once for each function `f` of the list. It has the parameters of the residual
    network `x = x + f(x)` of the same functions, to which it comes near with `beta`
    near 0.

    Reference:

    - [Sander et al., 2021](https://arxiv.org/abs/2102.07870)

    Args:
        functions: A list of Keras layers that keep their input's shape.
        include_top: Boolean, whether to average over all positions and classify.
            Defaults to `True`.
        input_shape: The shape of an input without the batch, such as `(height,
            width, channels)` or `(features,)`. It has to be given.
        classes: Integer, how many the top tells apart. Defaults to `1000`.
        classifier_activation: The activation of the top; `None` for logits.
            Defaults to `"softmax"`.
        beta: Float between 0 and 1, both excluded, what is kept of the velocity.
            Defaults to `0.9`.
        exact: Boolean, whether inputs are rebuilt bit by bit, at any depth, see
            `revkeras.couplings.Momentum`. Defaults to `False`.
        initial_velocity: `"zeros"` or `"learned"`. Defaults to `"zeros"`.
        weights: The path of a weights file to load. Defaults to `None`, which means
            random weights.
        memory_mode: That of the stack, see `revkeras.ReversibleSequential`.
            Defaults to `"reversible"`.
        name: The model's name. Defaults to `"momentum_net"`.

    Returns:
        A `keras.Model`.

    Raises:
        ValueError: for bad arguments, and functions that change the shape.

    Example:

    >>> import keras, revkeras
    >>> functions = [keras.layers.Dense(8, activation="tanh") for _ in range(10)]
    >>> model = revkeras.models.MomentumNet(functions, input_shape=(8,), classes=3)
    >>> model(keras.ops.ones((2, 8))).shape
    TensorShape([2, 3])
    """
    check_layers(functions, "functions")
    check_top(include_top, classes, None)
    if not isinstance(input_shape, (tuple, list)) or not input_shape:
        raise ValueError(
            "Invalid value for argument `input_shape`: expected the shape of an input without the "
            "batch, which the functions do not tell; received "
            f"input_shape={input_shape!r}."
        )
    inputs = keras.Input(tuple(input_shape))
    coupling = Momentum(beta, exact, initial_velocity)
    x = ReversibleSequential(
        functions,
        coupling=coupling,
        split_axis=None,
        memory_mode=memory_mode,
        name="reversible",
    )(inputs)
    if include_top:
        if len(x.shape) > 2:
            axes = list(range(1, len(x.shape)))  # all but the batch
            first = len(axes) > 2 and keras.config.image_data_format() == "channels_first"
            axes.pop(0 if first else -1)
            x = keras.ops.mean(x, axis=axes)
        x = keras.layers.Dense(int(classes), classifier_activation, name="predictions")(x)
    return with_weights(keras.Model(inputs, x, name=name), weights)
