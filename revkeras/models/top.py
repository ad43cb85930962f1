"""What all models of images share: their input, and what stands on the features."""

import numbers
import os
from typing import Any

import keras

POOLINGS = {
    None: None,
    "avg": keras.layers.GlobalAveragePooling2D,
    "max": keras.layers.GlobalMaxPooling2D,
}


def image_input(input_shape: Any, default: tuple, divisor: int = 1) -> keras.KerasTensor:
    """The input of a model; raises unless images are of `(height, width, channels)`.

    Args:
        input_shape: What the user gave, or `None`.
        default: What stands for `None`.
        divisor: What height and width have to be divisible by, where they are known.
    """
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "The models of `revkeras.models` take images with their channels last, and "
            f"keras.config.image_data_format() is {keras.config.image_data_format()!r}. Call "
            "keras.config.set_image_data_format('channels_last') before, or build "
            "`revkeras.ReversibleSequential(..., split_axis=1)` of blocks of your own."
        )
    shape = default if input_shape is None else input_shape
    is_shape = isinstance(shape, (tuple, list)) and len(shape) == 3
    if not is_shape or not all(s is None or is_size(s) for s in shape) or shape[-1] is None:
        raise ValueError(
            "Invalid value for argument `input_shape`: expected (height, width, channels) in "
            f"positive integers, channels last, received input_shape={input_shape!r}."
        )
    if any(size is not None and size % divisor for size in shape[:2]):
        raise ValueError(
            "Invalid value for argument `input_shape`: expected a height and width divisible by "
            f"{divisor}, received input_shape={tuple(shape)}."
        )
    return keras.Input(tuple(shape), name="images")


def check_top(include_top: bool, classes: Any, pooling: Any) -> None:
    """Raises for arguments of the top that cannot be."""
    if pooling not in POOLINGS:
        raise ValueError(
            f"Invalid value for argument `pooling`: expected one of {list(POOLINGS)}, received "
            f"pooling={pooling!r}."
        )
    if include_top and not is_size(classes):
        raise ValueError(
            "Invalid value for argument `classes`: expected a positive integer, received "
            f"classes={classes!r}."
        )


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raises unless an argument has one of its values."""
    if value not in choices:
        raise ValueError(
            f"Invalid value for argument `{name}`: expected one of {list(choices)}, received "
            f"{name}={value!r}."
        )


def add_top(
    features: Any,
    include_top: bool,
    classes: int,
    classifier_activation: Any,
    pooling: str | None,
) -> Any:
    """Class scores of a model's features, or the features, pooled if that is asked for."""
    if include_top:
        x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(features)
        return keras.layers.Dense(int(classes), classifier_activation, name="predictions")(x)
    return POOLINGS[pooling](name=f"{pooling}_pool")(features) if pooling else features


def is_size(value: Any) -> bool:
    """Whether a value is a positive integer, of Python or NumPy."""
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return is_integer and value > 0


def with_weights(model: keras.Model, weights: Any) -> keras.Model:
    """The model, with the weights of a file if one is named."""
    if weights is None:
        return model
    if not isinstance(weights, (str, os.PathLike)) or not os.path.exists(weights):
        raise ValueError(
            "Invalid value for argument `weights`: expected None, for random ones, or the path of "
            f"a file that `save_weights()` wrote, received weights={weights!r}. No trained weights "
            "come with revkeras."
        )
    model.load_weights(weights)
    return model
