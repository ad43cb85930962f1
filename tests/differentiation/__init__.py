"""Gradients, as the Keras backend that runs takes them."""

import keras

if keras.backend.backend() == "jax":
    from tests.differentiation.on_jax import (
        FAILED_CHECK,
        differentiated,
        in_graph,
        jacobian,
        value_and_gradients,
    )
elif keras.backend.backend() == "torch":
    from tests.differentiation.on_torch import (
        FAILED_CHECK,
        differentiated,
        in_graph,
        jacobian,
        value_and_gradients,
    )
else:
    from tests.differentiation.on_tensorflow import (
        FAILED_CHECK,
        differentiated,
        in_graph,
        jacobian,
        value_and_gradients,
    )

__all__ = [
    "COMPILED",
    "FAILED_CHECK",
    "FLOAT64_TOLERANCE",
    "GRAPHS",
    "cases",
    "differentiated",
    "gradients",
    "in_graph",
    "jacobian",
    "value_and_gradients",
]

# Eager calls take longer on JAX, which compiles each of their operations by itself.
COMPILED = keras.backend.backend() == "jax"
GRAPHS = [True] if COMPILED else [False, True]  # of drawn cases

# Of values in float64. Keras computes `tanh` and others in float32 on JAX, whatever they get.
FLOAT64_TOLERANCE = 1e-4 if COMPILED else 1e-10


def cases(n):
    """How many cases to draw where they are `n` if nothing is compiled."""
    return max(n // 4, 1) if COMPILED else n


def gradients(function, sources, variables=(), **options):
    """See `value_and_gradients`."""
    return value_and_gradients(function, sources, variables, **options)[1]
