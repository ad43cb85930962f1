"""Discard, rebuild, differentiate: one folder per Keras backend, the same verbs in each."""

import keras

if keras.backend.backend() == "tensorflow":
    from revkeras.backprop.tensorflow import *  # noqa: F403  its `__all__` lists the verbs
else:
    raise ImportError(
        "revkeras runs on Keras's TensorFlow backend. Expected "
        "keras.backend.backend() == 'tensorflow', received "
        f"'{keras.backend.backend()}'. Set KERAS_BACKEND=tensorflow in the "
        "environment before Keras is imported."
    )
