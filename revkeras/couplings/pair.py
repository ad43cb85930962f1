"""Couplings from pairs of plain functions."""

from collections.abc import Callable
from typing import Any

import keras

from revkeras._stack.streams import same_shape
from revkeras.couplings.coupling import Coupling
from revkeras.couplings.functions import name_of, serialize


@keras.saving.register_keras_serializable("revkeras")
class Pair(Coupling):
    """A coupling of two functions, `forward(x, fx) -> y` and `inverse(y, fx) -> x`.

    Raises:
        ValueError: when called, if a function changes the stream's shape or dtype.
    """

    def __init__(self, forward: Callable, inverse: Callable):
        self.functions = forward, inverse

    def forward(self, x: Any, fx: Any) -> Any:
        y = self.functions[0](x, fx)
        _refuse_changed_stream("coupling_forward", self.functions[0], y, x)
        return y

    def inverse(self, y: Any, fx: Any) -> Any:
        x = self.functions[1](y, fx)
        _refuse_changed_stream("coupling_inverse", self.functions[1], x, y)
        return x

    def describe(self) -> tuple[str, str]:
        forward, inverse = map(name_of, self.functions)
        return f"`coupling_forward` ({forward})", f"`coupling_inverse` ({inverse})"

    def get_config(self) -> dict:
        names = "coupling_forward", "coupling_inverse"
        forward, inverse = map(serialize, self.functions, names)
        return {"forward": forward, "inverse": inverse}

    @classmethod
    def from_config(cls, config: dict) -> "Pair":
        functions = map(
            keras.saving.deserialize_keras_object, (config["forward"], config["inverse"])
        )
        return cls(*functions)


def from_functions(forward: Any, inverse: Any) -> list[Pair]:
    """The couplings that two arguments, each a function or a list, stand for."""
    if forward is None or inverse is None:
        given, missing = ("coupling_forward", "coupling_inverse")[:: 1 if inverse is None else -1]
        raise ValueError(
            f"Invalid value for argument `{missing}`: expected the function that goes with "
            f"`{given}`, received {missing}=None. Pass both, or neither for the additive "
            "coupling."
        )
    forwards, inverses = _as_list(forward), _as_list(inverse)
    if len(forwards) != len(inverses):
        raise ValueError(
            "Arguments `coupling_forward` and `coupling_inverse` must have the same length: "
            f"received {len(forwards)} forward and {len(inverses)} inverse functions."
        )
    for name, functions in ("coupling_forward", forwards), ("coupling_inverse", inverses):
        if not functions:
            raise ValueError(
                f"Invalid value for argument `{name}`: expected a function or a list of "
                f"functions, received an empty list. Leave it out for the additive coupling."
            )
        for function in functions:
            if not callable(function):
                raise ValueError(
                    f"Invalid value for argument `{name}`: expected a function or a list of "
                    f"functions, received {function!r} (of type {type(function).__name__})."
                )
    return [Pair(f, g) for f, g in zip(forwards, inverses, strict=True)]


def _refuse_changed_stream(argument: str, function: Callable, y: Any, x: Any) -> None:
    found, expected = [(tuple(t.shape), keras.backend.standardize_dtype(t.dtype)) for t in (y, x)]
    if found[1] != expected[1] or not same_shape(found[0], expected[0]):
        raise ValueError(
            f"`{argument}` ({name_of(function)}) must keep the stream's shape and dtype: "
            f"expected {expected[0]} {expected[1]}, received {found[0]} {found[1]}."
        )


def _as_list(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]
