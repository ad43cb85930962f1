"""Users' plain functions, in errors and in files."""

from collections.abc import Callable
from typing import Any

import keras


def name_of(function: Callable) -> str:
    """What an error calls a function."""
    return getattr(function, "__name__", type(function).__name__)


def serialize(function: Callable, argument: str) -> Any:
    """The function's place in a config; raises unless it is found again from there."""
    found = None
    if name_of(function) != "<lambda>":
        config = keras.saving.serialize_keras_object(function)
        try:
            found = keras.saving.deserialize_keras_object(config)
        except (TypeError, ValueError):
            found = None
    if found is not function:
        raise ValueError(
            f"The function {name_of(function)} of a coupling (`{argument}`) cannot be saved: "
            "nothing names it when the model is loaded. Write it as a function and register it "
            "with `@keras.saving.register_keras_serializable(package='my_package')`."
        )
    return config
