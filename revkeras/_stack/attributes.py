"""The Python attributes that a layer had when it was called, for its replay."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from revkeras._keras import is_bookkeeping

# Their objects do not change, or are tensors and variables.
_LIBRARIES = {"builtins", "keras", "numpy", "jax", "jaxlib", "tensorflow", "torch"}


class AsFirstCalled:
    """Runs a layer's code with the attributes that the layer had in the first run.

    Layers, lists, dictionaries and objects of users in them count, at any depth: a schedule's
    number, an activation that was exchanged. What code reads elsewhere, as in globals or in
    arrays that change in place, is read anew.

    Args:
        layer: The layer.
    """

    def __init__(self, layer: keras.layers.Layer):
        self._layer = layer
        self._seen: list[tuple[Any, Any]] | None = None

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        if self._seen is None:
            self._seen = _noted(self._layer)
            yield
            return
        now = self._seen
        if _has_changed(self._seen):
            now = _noted(self._layer)
            _put_back(self._seen)
        try:
            yield
        finally:
            _put_back(now)


def _noted(layer: keras.layers.Layer) -> list[tuple[Any, Any]]:
    """The dictionaries and lists that the layer's attributes and items are in, each with a copy."""
    found, reached, known = [], [layer], set()
    while reached:
        x = reached.pop()
        if id(x) in known:
            continue
        known.add(id(x))
        holder = x if isinstance(x, (list, dict, tuple)) else vars(x)
        copy = holder
        if isinstance(holder, dict):
            copy = {k: v for k, v in holder.items() if _is_noted(k, v)}
        elif isinstance(holder, list):
            copy = list(holder)
        found.append((holder, copy))
        items = copy.values() if isinstance(copy, dict) else copy
        reached.extend(item for item in items if _holds_items(type(item)))
    return [(holder, copy) for holder, copy in found if holder is not copy]


def _is_noted(name: Any, value: Any) -> bool:
    # A user's layer may well have a `seed` or a `name` of its own.
    is_private = isinstance(name, str) and name.startswith("_")
    is_keras_own = is_private and is_bookkeeping(name)
    # A tensor would keep its graph alive, and what a call leaves in an attribute is its own.
    return not is_keras_own and not _is_tensor(type(value))


def _has_changed(noted: list[tuple[Any, Any]]) -> bool:
    return any(
        _appeared(holder, copy) or any(holder.get(k) is not v for k, v in copy.items())
        if isinstance(holder, dict)
        else len(holder) != len(copy) or any(a is not b for a, b in zip(holder, copy))
        for holder, copy in noted
    )


def _put_back(noted: list[tuple[Any, Any]]) -> None:
    # By the methods of `list` and `dict`: Keras's and TensorFlow's own would track the items anew.
    for holder, copy in noted:
        if isinstance(holder, dict):
            for name in _appeared(holder, copy):
                dict.pop(holder, name)
            dict.update(holder, copy)
        else:
            list.__setitem__(holder, slice(None), copy)


def _appeared(holder: dict, copy: dict) -> list:
    return [k for k, v in holder.items() if k not in copy and _is_noted(k, v)]


@functools.cache
def _holds_items(kind: type) -> bool:
    """Whether objects of a type are containers, layers, or of a user's class with attributes."""
    if issubclass(kind, (list, dict, tuple, keras.layers.Layer)):
        return True
    of_user = kind.__module__.partition(".")[0] not in _LIBRARIES
    return of_user and bool(kind.__dictoffset__) and not _is_tensor(kind)


@functools.cache
def _is_tensor(kind: type) -> bool:
    return hasattr(kind, "dtype") and hasattr(kind, "shape") and not issubclass(kind, np.generic)
