"""Is a coupling's inverse its inverse?"""

from collections.abc import Sequence

import keras
import numpy as np

from revkeras._round_trip import TOLERANCES, worst_error
from revkeras._stack.streams import same_shape
from revkeras.couplings.coupling import Coupling


def check_coupling(coupling: Coupling, shape: Sequence, dtype: str) -> None:
    """Raises if a coupling does not undo itself on small random values.

    Runs in float64 where its functions allow it: there a wrong formula stands
    out from rounding even when it is off by a part in ten thousand.

    Args:
        coupling: The coupling.
        shape: The shape of a stream, `None` where a size is not known.
        dtype: The dtype of a stream.
    """
    small = [2] * (len(shape) - 1) + [shape[-1] or 2]
    try:
        _there_and_back(coupling, np.zeros((2 + coupling.n_updates, *small)), dtype)
    except Exception:  # written for the sizes that the stream really has
        small = [d or 2 for d in shape]
    values = np.random.default_rng(0).standard_normal((2 + coupling.n_updates, *small))
    error, scale = _there_and_back(coupling, values, dtype)
    tolerance = TOLERANCES[dtype].pair
    try:
        error, scale = _there_and_back(coupling, values, "float64")
        tolerance = TOLERANCES["float64"].pair
    except Exception:  # noqa: S110 - constants of another dtype inside: what was found stands
        pass
    if not error <= tolerance * scale:
        forward, inverse = coupling.describe()
        raise ValueError(
            f"{inverse} does not undo {forward}: {_bare(inverse)}({_bare(forward)}(x, f), f) "
            f"differs from `x` by {error:.3g} on random values of size {scale:.3g}; expected at "
            f"most {tolerance * scale:.1g}. Correct the pair, or pass `check_inverse=False` if "
            "it is right and random values are outside its domain."
        )


def _there_and_back(coupling: Coupling, values: np.ndarray, dtype: str) -> tuple[float, float]:
    """The largest error of the rebuilt streams, and the largest value in them."""
    x0, x1, *fx = [keras.ops.convert_to_tensor(v, dtype=dtype) for v in values]
    fx = fx[0] if len(fx) == 1 else tuple(fx)
    coupling = coupling.at(0, 1)
    outputs = coupling.couple(coupling.to_carry([x0, x1]), fx)
    for y in outputs[:2]:
        if not same_shape(y.shape, x0.shape):
            raise ValueError(
                f"{coupling.describe()[0]} must keep the stream's shape: expected "
                f"{tuple(x0.shape)}, received {tuple(y.shape)}."
            )
    inputs, _ = coupling.from_carry(coupling.uncouple(outputs, fx), dtype)
    rebuilt = [*inputs, coupling.source(outputs)]
    error, _, _ = worst_error(rebuilt, (x0, x1, x1))
    return error, float(np.max(np.abs(values[:2]), initial=1.0))


def _bare(name: str) -> str:
    return name.split("`")[1]
