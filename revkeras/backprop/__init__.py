"""Discard, rebuild, differentiate: one file per Keras backend, the same verbs in each."""

import keras

if keras.backend.backend() == "tensorflow":
    from revkeras.backprop.tensorflow import (
        are_initialized,
        checkpoint,
        compiles_by_default,
        eager_scope,
        gradient_tape,
        is_eager,
        offer_update,
        require,
        reversible,
        snapshot,
        take_updated,
    )
else:
    raise ImportError(
        "revkeras runs on Keras's TensorFlow backend. Expected "
        "keras.backend.backend() == 'tensorflow', received "
        f"'{keras.backend.backend()}'. Set KERAS_BACKEND=tensorflow in the "
        "environment before Keras is imported."
    )

__all__ = [
    "are_initialized",
    "checkpoint",
    "compiles_by_default",
    "eager_scope",
    "gradient_tape",
    "is_eager",
    "offer_update",
    "require",
    "reversible",
    "snapshot",
    "take_updated",
]
