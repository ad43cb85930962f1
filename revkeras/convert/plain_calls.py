"""A model that calls another one by plain differentiation."""

import types
from collections.abc import Sequence
from typing import Any

import keras

from revkeras._engine import walk
from revkeras._keras import call_signature, set_call_signature, set_called_as
from revkeras._stack.memory_modes import running


def called_plainly(model: keras.Model, reversible: Sequence) -> keras.Model:
    """A model that computes what `model` does, whose stacks and runs are `reversible`."""
    plain = _CalledPlainly(model, reversible)
    set_called_as(plain, model)  # for its export
    return plain


class _CalledPlainly(keras.Model):
    def __init__(self, model: keras.Model, reversible: Sequence):
        super().__init__(name=model.name, dtype=model.dtype_policy)
        self.model = model
        # Keras would track the stacks in a dict.
        self.ways = types.MappingProxyType(dict.fromkeys(reversible, walk.plain))
        set_call_signature(self, call_signature(model))

    def call(self, *args: Any, **kwargs: Any) -> Any:
        with running(self.ways):
            return self.model(*args, **kwargs)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.compute_output_spec(*args, **kwargs)

    def get_config(self) -> dict:
        raise NotImplementedError(
            f"Model '{self.name}' calls a reversible model plainly and cannot be saved. Export it "
            "with `export()`, or save the reversible model and make it plain once it is loaded."
        )
