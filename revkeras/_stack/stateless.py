"""A Keras layer as a pure function of its arguments and its variables' values."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras

from revkeras._engine import verbs
from revkeras._engine.refusals import untracked
from revkeras._keras import flatten_layers, get_stateless_scope
from revkeras._stack.attributes import AsFirstCalled
from revkeras._stack.masks import attach_mask, mask_of


@dataclasses.dataclass(frozen=True)
class StatelessLayer:
    """Calls a built layer with given values in the place of its variables.

    Attributes:
        layer: A built Keras layer.
        training: `training` for the layer and everything inside it.
        trainable: The variables that gradients are taken for.
        state: All its other variables: statistics, seeds, frozen weights.
        as_first_called: Gives the layer the Python attributes that it had in the first run.
    """

    layer: keras.layers.Layer
    training: bool | None
    trainable: tuple[keras.Variable, ...]
    state: tuple[keras.Variable, ...]
    as_first_called: Callable[[], contextlib.AbstractContextManager]

    @classmethod
    def of(cls, layer: keras.layers.Layer, training: bool | None) -> "StatelessLayer":
        """The layer with its variables as they are sorted now."""
        state = [*layer.non_trainable_variables, *layer.metrics_variables]
        for inner in flatten_layers(layer):
            if getattr(inner, "stateful", False):  # Keras does not track the states of an RNN
                state.extend(keras.tree.flatten(getattr(inner, "states", None) or []))
        unique = {id(v): v for v in state}
        return cls(
            layer,
            training,
            tuple(layer.trainable_variables),
            tuple(unique.values()),
            AsFirstCalled(layer) if verbs.may_be_replayed() else contextlib.nullcontext,
        )

    def __call__(self, weights: list, state: list, *args: Any, **kwargs: Any) -> tuple:
        """Calls the layer: `(outputs, losses, updates)`, see `run`."""
        call = functools.partial(self.layer, *args, **kwargs, training=self.training)
        return self.run(call, weights, state)

    def run(self, function: Callable, weights: list, state: list) -> tuple:
        """Runs `function()`, which uses the layer; no variable changes.

        Returns:
            `(outputs, losses, updates)`: what `function` returned, what the layer
            added as losses, and the new values of `state` by their position in it.
        """
        variables = (*self.trainable, *self.state)
        mapping = list(zip(variables, (*weights, *state), strict=True))
        with _OwnValues(mapping, collect_losses=True) as scope:
            before = [scope.get_current_value(v) for v in variables]
            with self.as_first_called(), verbs.refusing_merges(self._name):
                outputs = function()
        if scope.foreign:
            raise untracked([v.path for v in scope.foreign])
        after = [scope.get_current_value(v) for v in variables]
        changed = [a is not b for a, b in zip(after, before, strict=True)]
        n = len(self.trainable)
        self._refuse_unreplayable(
            [v for v, c in zip(self.trainable, changed[:n], strict=True) if c],
            foreign=set(scope.state_mapping) - {id(v) for v in variables},
        )
        updates = {i: a for i, (a, c) in enumerate(zip(after[n:], changed[n:])) if c}
        return outputs, list(scope.losses), updates

    @property
    def _name(self) -> str:
        return f"Block '{self.layer.name}' (of type {type(self.layer).__name__})"

    def _refuse_unreplayable(self, assigned: list, foreign: set) -> None:
        if assigned:
            raise ValueError(
                f"{self._name} assigns its trainable weights {[v.path for v in assigned]} in its "
                "`call()`, so what they were could not be told in the backward pass. Make them "
                "non-trainable, or use `memory_mode='none'`."
            )
        if foreign:
            raise ValueError(
                f"{self._name} updates variables that Keras does not count as its state, so it "
                "could not be replayed in the backward pass. Random numbers need a generator of "
                "the block's: set `self.seed_generator = keras.random.SeedGenerator(seed)` in its "
                "`__init__()` and pass `seed=self.seed_generator`. Other state needs "
                "`self.add_weight(..., trainable=False)`."
            )


class _OwnValues(keras.StatelessScope):
    """Notes the variables of other layers that are read, which gradients would not reach.

    A scope around this one may have a value for them; without it, they would silently have the
    one that they began with.
    """

    def __enter__(self) -> "_OwnValues":
        self.foreign: list[keras.Variable] = []
        self._around = get_stateless_scope()
        return super().__enter__()

    def get_current_value(self, variable: keras.Variable) -> Any:
        value = super().get_current_value(variable)
        if value is None:
            around = self._around and self._around.get_current_value(variable)
            if variable.trainable or around is not None:
                self.foreign.append(variable)
        return value


def separate_tensors(structure: Any) -> tuple[list, list, Callable[[list, list], Any]]:
    """Takes the tensors out of a nested structure.

    Returns:
        `(floats, others, rebuild)`: its floating-point tensors, its other
        tensors with the masks that Keras layers have left on the first, and
        `rebuild(floats, others)`, which puts such tensors back in their places.
        What is no tensor stays in place.
    """
    leaves = [
        verbs.snapshot([x])[0] if hasattr(x, "assign") else x  # a variable, Keras's or not
        for x in keras.tree.flatten(structure)
    ]
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


class Packing:
    """A structure's way through a traced function, which returns tensors alone."""

    def pack(self, structure: Any) -> list:
        """The structure's tensors, floating-point ones first."""
        floats, others, self._rebuild = separate_tensors(structure)
        self._n_floats = len(floats)
        return [*floats, *others]

    def unpack(self, tensors: list) -> Any:
        """The structure that was packed last, with `tensors` in their places."""
        return self._rebuild(tensors[: self._n_floats], tensors[self._n_floats :])

    def take_over(self, other: "Packing") -> None:
        """From here on, unpacks what `other` has packed last."""
        self._rebuild, self._n_floats = other._rebuild, other._n_floats


def take_effect(layer: keras.layers.Layer, state: list, updates: dict, losses: list) -> None:
    """Does what a stateless run left undone: assigns new states, adds losses to `layer`."""
    for position, value in updates.items():
        state[position].assign(value)
    for loss in losses:
        layer.add_loss(loss)


def is_built(layer: keras.layers.Layer) -> bool:
    """Whether the layer and all layers in it have their variables."""
    return all(inner.built for inner in flatten_layers(layer))


def supports_jit(layer: keras.layers.Layer) -> bool:
    """Whether the layer and all layers in it let XLA compile them."""
    return all(inner.supports_jit for inner in flatten_layers(layer))


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


def _is_float(tensor: Any) -> bool:
    return "float" in keras.backend.standardize_dtype(tensor.dtype)
