"""Discard, rebuild, differentiate: one folder per Keras backend, the same verbs in each."""

from collections.abc import Callable
from typing import Any

import keras

if keras.backend.backend() == "tensorflow":
    from revkeras.backprop.tensorflow import *  # noqa: F403  its `__all__` lists the verbs
else:

    def __getattr__(verb: str) -> Callable:
        """A verb that raises when it is called: couplings, for one, need none."""
        if verb.startswith("_"):
            raise AttributeError(f"module '{__name__}' has no attribute '{verb}'")

        def refuse(*_: Any, **__: Any) -> None:
            raise NotImplementedError(
                "Reversible layers run on Keras's TensorFlow backend. Expected "
                "keras.backend.backend() == 'tensorflow', received "
                f"'{keras.backend.backend()}'. Set KERAS_BACKEND=tensorflow in the environment "
                "before Keras is imported."
            )

        return refuse
