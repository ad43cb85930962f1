"""What a layer of Keras's own computes, as a value that can be compared."""

import itertools
import types
from collections.abc import Hashable, Sequence
from typing import Any

import keras
import numpy as np

from revkeras._keras import is_bookkeeping

# Of lists, tuples and dictionaries: backends wrap those that layers hold.
_CONTAINERS = ("builtins", "collections", "keras", keras.backend.backend())
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def structure_of(layer: Any, variables: Sequence = ()) -> Hashable | None:
    """All that decides what a layer's `call()` computes but its variables' values.

    Two layers of equal structures trace to equal graphs. Only code of Keras and of this
    library can be known to depend on nothing else, so there is none for a layer in which
    anything else stands: a class, a function or an object of another package.

    Args:
        layer: A layer, a model, or an object such as a coupling.
        variables: Variables of the layer, in the order in which it is given values for them.

    Returns:
        A hashable value, or `None`.
    """
    walk = _Walk()
    try:
        walk.visit(layer)
        order = tuple(walk.numbers[id(variable)] for variable in variables)
    except (_Foreign, KeyError, RecursionError):
        return None
    return tuple(walk.found), order


class _Foreign(Exception):
    """Something stands in the layer whose code could depend on anything."""


class _Walk:
    """Writes down an object and all that it refers to; what it meets again, as a number."""

    def __init__(self) -> None:
        self.found: list = []
        self.numbers: dict[int, int] = {}
        self.alive: list = []  # so that no number is given twice

    def visit(self, x: Any) -> None:
        found = self.found
        kind = type(x)
        if kind in _PLAIN:
            found.append(kind)  # True == 1 == 1.0
            found.append(x)
        elif id(x) in self.numbers:
            found.append(_Walk)
            found.append(self.numbers[id(x)])
        elif kind is type or isinstance(x, (type, types.ModuleType)):
            found.append(x)
        else:
            self.numbers[id(x)] = len(self.numbers)
            self.alive.append(x)
            self.visit_parts(x, kind)

    def visit_parts(self, x: Any, kind: type) -> None:
        found = self.found
        if isinstance(x, (list, tuple, dict)) and _package(kind) in _CONTAINERS:
            found.append(len(x))
            items = itertools.chain.from_iterable(x.items()) if isinstance(x, dict) else x
            for item in items:
                self.visit(item)
        elif isinstance(x, (set, frozenset)) and all(type(item) in _PLAIN for item in x):
            found.append(frozenset)
            found.append(frozenset((type(item), item) for item in x))
        elif isinstance(x, types.FunctionType):
            # What is defined inside of a function sees what that function was called with.
            if not _is_own(x) or x.__closure__:
                raise _Foreign(x)
            found.append(x)
        elif isinstance(x, types.MethodType):
            self.visit(x.__func__)
            self.visit(x.__self__)
        elif kind is np.ndarray and x.dtype != object:
            found.extend((kind, x.shape, x.dtype.str, x.tobytes()))
        elif isinstance(x, keras.KerasTensor):
            found.extend((kind, x.shape, x.dtype, x.sparse, x.ragged))
        elif isinstance(x, keras.initializers.Initializer):
            found.append(kind)
        elif _is_own(kind) and hasattr(x, "__dict__"):
            self.own(x, kind)
        else:
            raise _Foreign(x)

    def own(self, x: Any, kind: type) -> None:
        """An object whose class is Keras's or this library's."""
        if not _is_own(getattr(kind, "call", kind)):
            raise _Foreign(kind.call)  # put in place of Keras's
        self.found.append(kind)
        if isinstance(x, keras.Variable):
            self.found.extend((tuple(x.shape), x.dtype))
        for name, value in vars(x).items():
            if not is_bookkeeping(name):
                self.found.append(name)
                self.visit(value)
        self.found.append(None)


def _is_own(x: Any) -> bool:
    return _package(x) in ("keras", "revkeras")


def _package(x: Any) -> str:
    return (x.__module__ or "").partition(".")[0]
