"""A Keras layer as a pure function of its arguments and its variables' values."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras


@dataclasses.dataclass(frozen=True)
class StatelessLayer:
    """Calls a built layer with given values in the place of its variables.

    Attributes:
        layer: A built Keras layer.
        training: `training` for the layer and everything inside it.
        trainable: The variables that gradients are taken for.
        state: All its other variables: statistics, seeds, frozen weights.
    """

    layer: keras.layers.Layer
    training: bool | None
    trainable: tuple[keras.Variable, ...]
    state: tuple[keras.Variable, ...]

    @classmethod
    def of(cls, layer: keras.layers.Layer, training: bool | None) -> "StatelessLayer":
        """The layer with its variables as they are sorted now."""
        return cls(
            layer,
            training,
            tuple(layer.trainable_variables),
            tuple(layer.non_trainable_variables),
        )

    def __call__(self, weights: list, state: list, *args: Any, **kwargs: Any) -> tuple:
        """Returns `(outputs, losses, updates)`; no variable changes.

        `updates` has the new values of `state` by their position in it.
        """
        variables = (*self.trainable, *self.state)
        mapping = list(zip(variables, (*weights, *state), strict=True))
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            before = [scope.get_current_value(v) for v in self.state]
            outputs = self.layer(*args, **kwargs, training=self.training)
        after = [scope.get_current_value(v) for v in self.state]
        self._refuse_foreign_state(scope)
        updates = {i: a for i, (b, a) in enumerate(zip(before, after)) if a is not b}
        return outputs, list(scope.losses), updates

    def _refuse_foreign_state(self, scope: keras.StatelessScope) -> None:
        known = {id(v) for v in (*self.trainable, *self.state)}
        if not set(scope.state_mapping) <= known:
            raise ValueError(
                f"Block '{self.layer.name}' (of type {type(self.layer).__name__}) updates state "
                "that is not its own, so it could not be replayed in the backward pass. Random "
                "numbers need a generator of the block's: set `self.seed_generator = "
                "keras.random.SeedGenerator(seed)` in its `__init__()` and pass "
                "`seed=self.seed_generator`. Other state needs `self.add_weight(..., "
                "trainable=False)`."
            )


def separate_tensors(structure: Any) -> tuple[list, list, Callable[[list, list], Any]]:
    """Takes the tensors out of a nested structure.

    Returns:
        `(floats, others, rebuild)`: its floating-point tensors, its other
        tensors with the masks that Keras layers have left on the first, and
        `rebuild(floats, others)`, which puts such tensors back in their places.
        What is no tensor stays in place.
    """
    leaves = keras.tree.flatten(structure)
    is_tensor = [keras.ops.is_tensor(x) for x in leaves]
    is_float = [t and _is_float(x) for x, t in zip(leaves, is_tensor, strict=True)]
    masks = [mask_of(x) if f else None for x, f in zip(leaves, is_float, strict=True)]

    def rebuild(floats: list, others: list) -> Any:
        floats, others = iter(floats), iter(others)
        rebuilt = []
        for leaf, tensor, is_f, mask in zip(leaves, is_tensor, is_float, masks, strict=True):
            leaf = (next(floats) if is_f else next(others)) if tensor else leaf
            rebuilt.append(leaf if mask is None else attach_mask(leaf, next(others)))
        return keras.tree.pack_sequence_as(structure, rebuilt)

    floats, others = [], []
    for leaf, tensor, is_f, mask in zip(leaves, is_tensor, is_float, masks, strict=True):
        if tensor:
            (floats if is_f else others).append(leaf)
        if mask is not None:
            others.append(mask)
    return floats, others, rebuild


def spec_of(structure: Any) -> Any:
    """The structure with a `KerasTensor` for every tensor."""
    return keras.tree.map_structure(
        lambda x: (
            keras.KerasTensor(x.shape, dtype=keras.backend.standardize_dtype(x.dtype))
            if keras.ops.is_tensor(x)
            else x
        ),
        structure,
    )


def mask_of(x: Any) -> Any:
    """The mask that a Keras layer has left on a tensor, or `None`."""
    return getattr(x, "_keras_mask", None)


def attach_mask(x: Any, mask: Any) -> Any:
    """`x`, with `mask` where Keras layers look for it."""
    if mask is not None:
        x._keras_mask = mask
    return x


def _is_float(tensor: Any) -> bool:
    return "float" in keras.backend.standardize_dtype(tensor.dtype)
