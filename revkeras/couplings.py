"""How a stream takes in a block's output, and how it gives it back.

A coupling is a pair of functions of tensors, `forward(x, fx) -> y` and
`inverse(y, fx) -> x`, with `inverse(forward(x, fx), fx) == x`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from revkeras.streams import same_shape


def additive_forward(x: Any, fx: Any) -> Any:
    """`x + fx`, the coupling of RevNets (Gomez et al. 2017, arXiv:1707.04585)."""
    return x + fx


def additive_inverse(y: Any, fx: Any) -> Any:
    """`y - fx`."""
    return y - fx


def resolve(forward: Any, inverse: Any) -> list[tuple[Callable, Callable]]:
    """The pairs that two arguments, each a function, a list or `None`, stand for."""
    if forward is None and inverse is None:
        return [(additive_forward, additive_inverse)]
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
    return list(zip(forwards, inverses, strict=True))


def check_pair(forward: Callable, inverse: Callable, shape: Sequence, dtype: str) -> None:
    """Raises if the pair changes shape or dtype, or is no inverse on random values.

    Runs in float64 where the functions allow it: there a wrong formula stands
    out from rounding even when it is off by a part in ten thousand.
    """
    small = [2] * (len(shape) - 1) + [shape[-1] or 2]
    try:
        forward(*_tensors(dtype, *np.zeros((2, *small))))
    except Exception:  # written for the sizes that the stream really has
        small = [d or 2 for d in shape]
    x_value, fx_value = np.random.default_rng(0).standard_normal((2, *small))
    x, fx = _tensors(dtype, x_value, fx_value)
    refuse_changed_stream("coupling_forward", forward, forward(x, fx), x)
    refuse_changed_stream("coupling_inverse", inverse, inverse(x, fx), x)
    try:
        error, scale = _round_trip_error(forward, inverse, x_value, fx_value, "float64")
        tolerance = 1e-8
    except Exception:  # constants of another dtype inside: measure in the streams' own
        error, scale = _round_trip_error(forward, inverse, x_value, fx_value, dtype)
        tolerance = {"float64": 1e-8, "float32": 2e-5, "float16": 0.05}.get(dtype, 0.2)
    if not error <= tolerance * scale:
        raise ValueError(
            f"`coupling_inverse` ({name_of(inverse)}) does not undo `coupling_forward` "
            f"({name_of(forward)}): coupling_inverse(coupling_forward(x, f), f) differs from "
            f"`x` by {error:.3g} on random values of size {scale:.3g}; expected at most "
            f"{tolerance * scale:.1g}. Correct the pair, or pass `check_inverse=False` if it is "
            "right and random values are outside its domain."
        )


def refuse_changed_stream(argument: str, function: Callable, y: Any, x: Any) -> None:
    """Raises if `y = function(x, fx)` has not the shape and dtype of the stream `x`."""
    found, expected = [(tuple(t.shape), keras.backend.standardize_dtype(t.dtype)) for t in (y, x)]
    if found[1] != expected[1] or not same_shape(found[0], expected[0]):
        raise ValueError(
            f"`{argument}` ({name_of(function)}) must keep the stream's shape and dtype: "
            f"expected {expected[0]} {expected[1]}, received {found[0]} {found[1]}."
        )


def serialize(functions: Sequence[Callable] | None) -> list | None:
    """Functions as configs; a lambda has no name to be found by, so it is refused."""
    if functions is None:
        return None
    for function in functions:
        if getattr(function, "__name__", "") == "<lambda>":
            raise ValueError(
                "A coupling that is a lambda cannot be saved: nothing names it when the model "
                "is loaded. Write it as a function and register it with "
                "`@keras.saving.register_keras_serializable(package='my_package')`."
            )
    return [keras.saving.serialize_keras_object(f) for f in functions]


def deserialize(configs: Sequence | None, custom_objects: dict | None = None) -> list | None:
    """The functions that `serialize` was given."""
    if configs is None:
        return None
    return [keras.saving.deserialize_keras_object(c, custom_objects) for c in configs]


def name_of(function: Callable) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _as_list(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _tensors(dtype: str, *values: np.ndarray) -> list:
    return [keras.ops.convert_to_tensor(v, dtype=dtype) for v in values]


def _round_trip_error(
    forward: Callable, inverse: Callable, x: np.ndarray, fx: np.ndarray, dtype: str
) -> tuple[float, float]:
    x, fx = _tensors(dtype, x, fx)
    back = keras.ops.convert_to_numpy(inverse(forward(x, fx), fx)).astype("float64")
    x = keras.ops.convert_to_numpy(x).astype("float64")
    error = float(np.max(np.abs(back - x), initial=0.0))
    return error if math.isfinite(error) else math.inf, float(np.max(np.abs(x), initial=1.0))
