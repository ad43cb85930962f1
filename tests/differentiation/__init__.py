"""One forward and backward pass of a layer, as the Keras backend that runs differentiates."""

import keras

if keras.backend.backend() == "jax":
    from tests.differentiation.on_jax import differentiated
elif keras.backend.backend() == "torch":
    from tests.differentiation.on_torch import differentiated
else:
    from tests.differentiation.on_tensorflow import differentiated

__all__ = ["differentiated"]
