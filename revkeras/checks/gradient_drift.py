"""What rounding does to a gradient on its way back."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from revkeras._engine import verbs, walk
from revkeras._engine.carry import Carry, Layout
from revkeras._engine.step import Step
from revkeras._keras import at_least_float32
from revkeras._round_trip import relative_error
from revkeras.checks.observation import ensure_built, observed, require_stack, trace


@dataclasses.dataclass(frozen=True)
class BlockDrift:
    """The drift at one block.

    Attributes:
        name: The block, behind the name of its stack.
        input_error: The relative error of its rebuilt input, both streams
            together: the norm of the difference over the norm.
        gradient_error: The relative error of the gradient by its weights and other
            arguments, all together. `None` if it has none.
    """

    name: str
    input_error: float
    gradient_error: float | None


@dataclasses.dataclass(frozen=True)
class GradientDrift:
    """What `gradient_drift` found. `print` shows it as a table.

    Attributes:
        blocks: A `BlockDrift` for each block, in order.
        input_gradient_error: The relative error of the gradient that comes out at
            the input of the first stack.
    """

    blocks: tuple[BlockDrift, ...]
    input_gradient_error: float

    def __str__(self) -> str:
        rows = [("block", "input error", "gradient error")]
        rows += [(b.name, _digits(b.input_error), _digits(b.gradient_error)) for b in self.blocks]
        rows += [("gradient of the input", "", _digits(self.input_gradient_error))]
        width = max(len(name) for name, _, _ in rows)
        return "\n".join(f"{name:{width}}  {a:>11}  {b:>14}" for name, a, b in rows)

    def plot(self, path: str | Path) -> None:
        """Draws both errors over the blocks and writes the picture to `path`.

        Args:
            path: A file name; its suffix says the format, `.png` or `.svg` for
                example.

        Raises:
            ImportError: if Matplotlib is missing.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                "`GradientDrift.plot()` draws with Matplotlib. Install it with `pip install "
                "matplotlib`."
            ) from error
        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots()
        for label in "input_error", "gradient_error":
            # No error at all has no logarithm: it is drawn below all that rounding makes.
            errors = [getattr(b, label) for b in self.blocks]
            errors = [math.nan if e is None else max(e, 1e-18) for e in errors]
            axes.semilogy(errors, marker=".", label=label.replace("_", " "))
        axes.set_xlabel("block")
        axes.set_ylabel("relative error")
        axes.legend()
        figure.savefig(path)


def gradient_drift(
    layer: keras.layers.Layer,
    x: Any,
    *,
    loss: Callable | None = None,
    training: bool = True,
    seed: int = 0,
    **arguments: Any,
) -> GradientDrift:
    """Measures what rebuilding costs in precision, block by block.

    Differentiates the layer twice, on the same state: once as plain training does,
    which keeps all that it needs, and once as in `memory_mode="reversible"`, at
    inputs that are rebuilt from the output. Worth a look before a new depth,
    coupling or dtype is trusted. Runs eagerly and leaves all state as it is; takes
    the memory of plain training.

    Args:
        layer: A `ReversibleSequential` in any memory mode, or a model that holds
            one or more, or that `revkeras.to_momentum_net` has converted. A stack
            inside a block of another one is a part of it.
        x: The layer's inputs.
        loss: `loss(outputs)`, the scalar that is differentiated. Defaults to `None`,
            which is the sum of the outputs, each times a standard normal random
            number. Losses that layers add do not count.
        training: Boolean, `training` for the layer. Defaults to `True`.
        seed: Integer, the seed of those numbers. Defaults to `0`.
        **arguments: Further arguments of the layer's call.

    Returns:
        A `GradientDrift`.

    Raises:
        ValueError: if `layer` neither is nor runs a `ReversibleSequential`, or if
            `loss` is no function.

    Example:

    >>> import keras, revkeras
    >>> blocks = [keras.layers.Dense(4, activation="tanh") for _ in range(8)]
    >>> layer = revkeras.ReversibleSequential(blocks, name="stack")
    >>> drift = revkeras.gradient_drift(layer, keras.random.normal((2, 8), seed=0))
    >>> drift.input_gradient_error < 1e-5
    True
    >>> drift.blocks[0].name
    "stack: Block 0 ('dense', of type Dense)"
    """
    require_stack("Invalid value for argument `layer`", layer)
    if loss is not None and not callable(loss):
        raise ValueError(
            "Invalid value for argument `loss`: expected a function of the outputs, received "
            f"loss={loss!r} (of type {type(loss).__name__})."
        )
    x = keras.tree.map_structure(keras.ops.convert_to_tensor, x)
    ensure_built(layer, x, arguments)

    def total() -> Any:
        outputs = layer(x, training=training, **arguments)
        return loss(outputs) if loss else _random_sum(outputs, seed)

    noughts = _noughts(layer, total)
    if not noughts:
        raise ValueError(
            "Invalid value for argument `layer`: expected one that runs a ReversibleSequential, "
            f"but '{layer.name}' called none of those that it holds."
        )
    with verbs.unchanged_draws():
        kept = _differentiated(layer, total, noughts, keep=True)
    with verbs.unchanged_draws():
        rebuilt = _differentiated(layer, total, noughts, keep=False)
    blocks = [
        block
        for found, expected in zip(rebuilt, kept, strict=True)
        for block in _compare_blocks(found, expected)
    ]
    start, expected = (runs[0].input_gradient.streams for runs in (rebuilt, kept))
    return GradientDrift(tuple(blocks), relative_error(start, expected))


@dataclasses.dataclass(frozen=True)
class _Run:
    """One run of a stack, forwards and backwards."""

    names: list[str]
    inputs: list[Carry]  # of each block, where it was differentiated
    input_gradient: Carry
    weight_gradients: list[list]  # of each block


def _noughts(layer: keras.layers.Layer, total: Callable[[], Any]) -> list[tuple[Carry, list]]:
    """For each run of a stack in `total()`, zeros like its input and the weights of each block."""
    found = []

    def way(stack: Any, steps: list[Step], *arguments: Any) -> tuple[Carry, list, dict]:
        layout, held, weights, state, residence = arguments
        own = [[weights[p] for p in step.weights] for step in steps]
        found.append(keras.tree.map_structure(keras.ops.zeros_like, (held, own)))
        return walk.plain(steps, *arguments)

    with observed(layer, way, inside=walk.plain):
        total()
    return found


def _differentiated(
    layer: keras.layers.Layer, total: Callable[[], Any], noughts: list, keep: bool
) -> list[_Run]:
    """Differentiates `total()` and tells what stacks did, which keep or rebuild their inputs.

    The gradients are those of `noughts`, which are added to what they are like: so each block has
    weights, and a gradient, of its own.
    """
    names, inputs = [], []

    def shifted(noughts: list) -> tuple[Any, list]:
        added, kept = iter(noughts), []

        def run(
            stack: Any,
            steps: list[Step],
            layout: Layout,
            held: Carry,
            weights: list,
            state: list,
            residence: Any,
        ) -> tuple[Carry, list, dict]:
            own = [[weights[p] for p in step.weights] for step in steps]
            held, own = keras.tree.map_structure(keras.ops.add, (held, own), next(added))
            positions = itertools.count()
            steps = [
                dataclasses.replace(step, weights=tuple(next(positions) for _ in step.weights))
                for step in steps
            ]
            weights = [w for ws in own for w in ws]
            names.append([f"{stack.name}: {step.name}" for step in steps])
            arguments = steps, layout, held, weights, state, residence
            if keep:
                found, results = trace(stack, *arguments)
                kept.append(found.carries[:-1])
                return results
            inputs.append([None] * len(steps))
            return walk.reversible(*arguments, show=inputs[-1].__setitem__)

        with observed(layer, run, inside=walk.plain if keep else None):
            return total(), kept

    (y, kept), pull_back = verbs.vjp(shifted, noughts)
    nothing = keras.tree.map_structure(lambda _: None, kept)
    (gradients,) = pull_back((keras.ops.ones_like(y), nothing))
    return [_Run(*run) for run in zip(names, kept or inputs, *zip(*gradients), strict=True)]


def _compare_blocks(found: _Run, expected: _Run) -> list[BlockDrift]:
    return [
        BlockDrift(
            name, relative_error(a.streams, b.streams), relative_error(da, db) if db else None
        )
        for name, a, b, da, db in zip(
            found.names,
            found.inputs,
            expected.inputs,
            found.weight_gradients,
            expected.weight_gradients,
            strict=True,
        )
    ]


def _random_sum(outputs: Any, seed: int) -> Any:
    generator, total = np.random.default_rng(seed), 0.0
    for y in keras.tree.flatten(outputs):
        dtype = keras.backend.standardize_dtype(y.dtype)
        if "float" in dtype:
            dtype = at_least_float32(dtype)
            factors = keras.ops.convert_to_tensor(generator.standard_normal(y.shape), dtype)
            total += keras.ops.cast(keras.ops.sum(keras.ops.cast(y, dtype) * factors), "float64")
    return total


def _digits(error: float | None) -> str:
    return "-" if error is None else f"{error:.1e}"
