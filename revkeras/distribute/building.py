"""Whether a model can be called, and has its variables."""

import keras

from revkeras._keras import flatten_layers


def has_variables(model: keras.Model) -> bool:
    """Whether a model has its variables; one without a `call()` has those of its parts."""
    parts = flatten_layers(model, include_self=False)
    return model.built or (not has_call(model) and all(layer.built for layer in parts))


def has_call(model: keras.Model) -> bool:
    """Whether a model can be called; one that trains its parts in `train_step()` may not."""
    return type(model).call is not keras.Model.call
