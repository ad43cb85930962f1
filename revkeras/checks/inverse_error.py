"""Does an inverse undo what it is the inverse of?"""

import dataclasses
import numbers
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from revkeras import couplings
from revkeras._round_trip import TOLERANCES, worst_error
from revkeras._stack.reversible_sequential import ReversibleSequential
from revkeras._stack.streams import is_pair
from revkeras.checks.observation import Trace, ensure_built, observed, tracing


@dataclasses.dataclass(frozen=True)
class InverseError:
    """How far what `check_inverse` got back was from what it had put in.

    Attributes:
        layer: The type, and the name of a layer.
        absolute: The largest difference of an element.
        relative: The same over the largest value that was put in.
        index: The element's position. Where several tensors are compared, it starts
            with which one: of a coupling, 0 and 1 are the streams before the block,
            and 2 is what `source` makes of those after it.
        tolerance: What `relative` may be.
        block: The block of a stack whose rebuilt input was the first, on the way
            back from the output, to be further off than that; if none was, the one
            that was furthest off. `None` if nothing was, and for what is no stack.
    """

    layer: str
    absolute: float
    relative: float
    index: tuple[int, ...]
    tolerance: float
    block: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the relative error is within the tolerance."""
        return self.relative <= self.tolerance


def check_inverse(
    layer: Any,
    input_shape: Sequence,
    dtype: Any = None,
    *,
    tolerance: float | None = None,
    raise_on_failure: bool = False,
    seed: int = 0,
    **arguments: Any,
) -> InverseError:
    """Runs a layer or a coupling forwards and back, on standard normal random values.

    A layer that is not built is built; otherwise nothing of it changes.

    Args:
        layer: A `ReversibleSequential`, any layer that defines `inverse()`, which gets
            all that the layer returned, or a `revkeras.couplings.Coupling` or the
            name of one. Layers run with `training=False`.
        input_shape: The input's shape with the batch axis, all sizes known; a list
            or tuple of shapes for a layer that takes several tensors. Of a coupling,
            the shape of a stream.
        dtype: The dtype of the values. Defaults to `None`, which is the layer's
            compute dtype, and `"float32"` for a coupling.
        tolerance: The largest relative error that passes. Defaults to `None`, which
            is 1e-8 for float64, 2e-5 for float32, 0.05 for float16 and 0.2 for
            bfloat16, by the shortest dtype that comes up.
        raise_on_failure: Boolean, whether a larger error is raised. Defaults to
            `False`.
        seed: Integer, the seed of the values. Defaults to `0`.
        **arguments: Further arguments of the layer's call and of its inverse.

    Returns:
        An `InverseError`.

    Raises:
        ValueError: for a shape that is none or that the layer refuses, an inverse
            that returns another shape, and with `raise_on_failure` for one that
            fails.
        TypeError: if `layer` is nothing of what is named above.

    Example:

    >>> import keras, revkeras
    >>> found = revkeras.check_inverse("leapfrog", (2, 4), "float64")
    >>> found.layer, found.passed
    ('Leapfrog', True)
    >>> stack = revkeras.ReversibleSequential([keras.layers.Dense(2) for _ in range(4)])
    >>> revkeras.check_inverse(stack, (8, 4)).relative < 1e-5
    True
    """
    shapes = _checked_shapes(input_shape)
    several = is_pair(input_shape)
    if isinstance(layer, keras.layers.Layer) and callable(getattr(layer, "inverse", None)):
        title = f"{type(layer).__name__} '{layer.name}'"
        dtype = _checked_dtype(layer.compute_dtype if dtype is None else dtype)
        way_back = _stack if isinstance(layer, ReversibleSequential) else _layer
    elif layer is not None and not isinstance(layer, (keras.layers.Layer, list, tuple)):
        (layer,) = couplings.resolve(layer)
        title, dtype, way_back = type(layer).__name__, _checked_dtype(dtype), _coupling
        if several or arguments:
            raise ValueError(
                "A coupling takes nothing but streams of one shape: expected input_shape=(batch, "
                f"..., channels) alone, received input_shape={input_shape!r} and the arguments "
                f"{sorted(arguments)}."
            )
        shapes, several = shapes * (2 + layer.n_updates), True
    else:
        raise TypeError(
            "Invalid value for argument `layer`: expected a ReversibleSequential, another layer "
            "that defines `inverse()`, a coupling or the name of one; received "
            f"layer={layer!r} (of type {type(layer).__name__})."
        )
    if tolerance is not None and not (isinstance(tolerance, numbers.Real) and tolerance > 0):
        raise ValueError(
            "Invalid value for argument `tolerance`: expected None or a positive number, received "
            f"tolerance={tolerance!r}."
        )
    generator = np.random.default_rng(seed)
    values = [keras.ops.convert_to_tensor(generator.standard_normal(s), dtype) for s in shapes]
    inputs = (values if isinstance(input_shape, list) else tuple(values)) if several else values[0]
    try:
        found, expected, trace = way_back(layer, inputs, arguments)
    except Exception as error:
        raise ValueError(f"{title} failed on input_shape={input_shape}: {error}") from error
    shapes = [[tuple(x.shape) for x in tensors] for tensors in (found, expected)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"The inverse of {title} must give back tensors of the shape that went in: expected "
            f"{shapes[1]}, received {shapes[0]}."
        )
    if tolerance is None:
        dtypes = {keras.backend.standardize_dtype(x.dtype) for x in found} & TOLERANCES.keys()
        tolerance = max(TOLERANCES[name].pair for name in {dtype, *dtypes})
    result = InverseError(title, *worst_error(found, expected), tolerance)
    if trace:
        result = dataclasses.replace(result, block=_worst_block(trace, tolerance))
    if raise_on_failure and not result.passed:
        raise ValueError(_message(result))
    return result


def _stack(stack: ReversibleSequential, inputs: Any, arguments: dict) -> tuple:
    ensure_built(stack, inputs, arguments)
    traces = []
    with observed(stack, tracing(traces.append)):
        outputs = stack(inputs, training=False, **arguments)
        trace, single = traces[0], keras.ops.is_tensor(inputs)
        if (single and stack.split_axis is None) or not stack.couplings[0].determined:
            *_, (_, found, expected) = trace.rebuilt()  # the outputs alone do not suffice
            return found, expected, trace
        if isinstance(outputs, tuple) and (single or not keras.ops.is_tensor(outputs[0])):
            n_latents = len(trace.carries[-1].latents)
            outputs = outputs[: 1 + n_latents] if n_latents else outputs[0]
        found = stack.inverse(outputs, **arguments)
    return keras.tree.flatten(found), keras.tree.flatten(inputs), trace


def _layer(layer: keras.layers.Layer, inputs: Any, arguments: dict) -> tuple:
    ensure_built(layer, inputs, arguments)
    with keras.StatelessScope():
        found = layer.inverse(layer(inputs, training=False, **arguments), **arguments)
    return keras.tree.flatten(found), keras.tree.flatten(inputs), None


def _coupling(coupling: couplings.Coupling, values: list, arguments: dict) -> tuple:
    x0, x1, *fx = values
    fx = fx[0] if len(fx) == 1 else tuple(fx)
    coupling = coupling.at(0, 1)
    inputs = coupling.to_carry([x0, x1])
    outputs = coupling.couple(inputs, fx)
    found = [*coupling.uncouple(outputs, fx)[:2], coupling.source(outputs)]
    return found, [*inputs[:2], inputs[1]], None


def _checked_shapes(input_shape: Any) -> list[tuple[int, ...]]:
    several = isinstance(input_shape, (list, tuple)) and is_pair(input_shape)
    shapes = input_shape if several else [input_shape]
    received = f"received input_shape={input_shape!r}"
    return [_checked_shape(shape, received) for shape in shapes]


def _checked_shape(shape: Any, received: str) -> tuple[int, ...]:
    expected = "Invalid value for argument `input_shape`: expected"
    sizes = tuple(shape) if isinstance(shape, Iterable) else ()
    if len(sizes) < 2:
        raise ValueError(f"{expected} (batch, ..., channels), two sizes or more; {received}.")
    for axis, size in enumerate(sizes):
        if size is None:
            raise ValueError(
                f"{expected} a known size on every axis, the batch's too; axis {axis} of {sizes} "
                f"is None, {received}."
            )
        if isinstance(size, bool) or not hasattr(size, "__index__") or operator.index(size) < 1:
            raise ValueError(
                f"{expected} positive integers; axis {axis} of {sizes} is {size!r}, {received}."
            )
    return tuple(map(operator.index, sizes))


def _checked_dtype(dtype: Any) -> str:
    try:
        name = keras.backend.standardize_dtype(dtype or "float32")
    except (TypeError, ValueError):
        name = None
    if name not in TOLERANCES:
        raise ValueError(
            f"Invalid value for argument `dtype`: expected one of {sorted(TOLERANCES)}, received "
            f"dtype={dtype!r}."
        )
    return name


def _worst_block(trace: Trace, tolerance: float) -> str | None:
    largest, block = 0.0, None
    for i, found, expected in trace.rebuilt():
        error = worst_error(found, expected)[1]
        if error > tolerance:
            return trace.steps[i].name
        if error > largest:
            largest, block = error, trace.steps[i].name
    return block


def _message(result: InverseError) -> str:
    block = f", and the way back first went wrong at {result.block}" if result.block else ""
    return (
        f"The inverse of {result.layer} does not undo it: it is off by {result.absolute:.3g} at "
        f"{result.index}, {result.relative:.3g} relative to the largest value, where at most "
        f"{result.tolerance:.3g} was expected{block}. Correct the inverse; if it is right and "
        "rounding grows so large, use dtype='float64' or an exact coupling, or pass a larger "
        "`tolerance`."
    )
