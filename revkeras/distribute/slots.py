"""What an optimizer keeps for each variable, seen while it is built."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras

from revkeras._keras import set_path, set_shape, set_variable_key, track_variable
from revkeras.distribute import variable_creation


@dataclasses.dataclass(frozen=True)
class Slot:
    """A variable of an optimizer that belongs to a variable of the model.

    Attributes:
        name: What the optimizer calls it, such as `"momentum"`.
        owner: The position, among the variables that the optimizer was built on, of
            the one that it belongs to.
        shape: Its shape.
        variable: The optimizer's variable.
    """

    name: str
    owner: int
    shape: tuple[int, ...]
    variable: keras.Variable


def build(
    optimizer: keras.optimizers.Optimizer, core: keras.optimizers.Optimizer, variables: Sequence
) -> list[Slot]:
    """Builds the optimizer, and returns the slots of `core`, itself or the one that it wraps."""
    return _watched_build(optimizer, core, list(variables), core.add_variable)


def described(
    optimizer: keras.optimizers.Optimizer, paths: Sequence, shapes: Sequence, dtypes: Sequence
) -> tuple[list[keras.Variable], list[Slot]]:
    """What the optimizer would keep for whole variables, and in which order, without keeping it.

    Returns:
        `(variables, slots)`: the stand-ins for all its variables, and those of them
        that are slots, with the shapes that they would have.
    """
    with variable_creation.unobserved():
        clone, slots = _described(optimizer, paths, shapes, dtypes)
    return clone.variables, slots


def _described(
    optimizer: keras.optimizers.Optimizer, paths: Sequence, shapes: Sequence, dtypes: Sequence
) -> tuple[keras.optimizers.Optimizer, list[Slot]]:
    clone = type(optimizer).from_config(optimizer.get_config())

    def stand_in(shape: Any, *args: Any, name: str | None = None, **kwargs: Any) -> keras.Variable:
        variable = keras.Variable(0.0, dtype="float32", trainable=False, name=name)
        track_variable(clone, variable)
        return variable

    references = []
    for path, shape, dtype in zip(paths, shapes, dtypes, strict=True):
        reference = keras.Variable(0.0, dtype=dtype, name=path.split("/")[-1])
        set_path(reference, path)
        set_shape(reference, tuple(shape))
        references.append(reference)
    clone.assign = lambda variable, value: None
    set_variable_key(clone, id)
    return clone, _watched_build(clone, clone, references, stand_in)


def _watched_build(optimizer: Any, core: Any, references: list, add_variable: Any) -> list[Slot]:
    positions = {id(reference): i for i, reference in enumerate(references)}
    slots: list[Slot] = []
    unnamed: list[tuple[tuple, keras.Variable]] = []  # until it is seen whose they are

    def watched_add(shape: Any, *args: Any, **kwargs: Any) -> keras.Variable:
        variable = add_variable(shape, *args, **kwargs)
        unnamed.append((tuple(shape), variable))
        return variable

    def watched_reference(
        reference_variable: Any, name: str | None = None, initializer: Any = "zeros"
    ) -> keras.Variable:
        reference, owner = reference_variable, positions[id(reference_variable)]
        path = reference.path.replace("/", "_")
        variable = add_variable(
            shape=reference.shape,
            initializer=initializer,
            dtype=reference.dtype,
            name=f"{path}_{name or 'var'}",
        )
        for i, (shape, other) in enumerate(unnamed):  # made by `add_variable`, just before
            slots.append(Slot(f"slot{i}", owner, shape, other))
        unnamed.clear()
        slots.append(Slot(name or "var", owner, tuple(reference.shape), variable))
        return variable

    core.add_variable = watched_add
    core.add_variable_from_reference = watched_reference
    try:
        optimizer.build(references)
    finally:
        del core.add_variable, core.add_variable_from_reference
    return slots
