"""Variables that are created under a strategy's scope."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from revkeras._keras import initializer_of_variables, set_initializer_of_variables

Initialize = Callable[[keras.Variable, Any], None]

# How Keras gives a variable its value.
KERAS_OWN: Initialize = initializer_of_variables()


@contextlib.contextmanager
def intercepted_creation(born: Callable[[keras.Variable, Any, Initialize], None]) -> Iterator[None]:
    """Within it, `born(variable, value, initialize)` gives Keras variables their values.

    `value` is a tensor or a function that returns one; `initialize(variable, value)` is what
    Keras would have done. Keras has no such hook, and TensorFlow's own is not told of the
    Keras variable.
    """
    initialize = initializer_of_variables()

    def intercept(variable: keras.Variable, value: Any) -> None:
        if hasattr(value, "assign"):  # a view of a variable that exists
            initialize(variable, value)
        else:
            born(variable, value, initialize)

    set_initializer_of_variables(intercept)
    try:
        yield
    finally:
        set_initializer_of_variables(initialize)


@contextlib.contextmanager
def unobserved() -> Iterator[None]:
    """Within it, variables are made as Keras makes them: those that are this rank's own."""
    initialize = initializer_of_variables()
    set_initializer_of_variables(KERAS_OWN)
    try:
        yield
    finally:
        set_initializer_of_variables(initialize)
