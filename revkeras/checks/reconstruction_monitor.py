"""Watches the rebuild while a model trains."""

import numbers
import operator
import warnings
from typing import Any

import keras

from revkeras._round_trip import is_finite, relative_error
from revkeras.checks.observation import Trace, observed, require_stack, tracing


class ReconstructionMonitor(keras.callbacks.Callback):
    """Measures, every so many training steps, how well blocks rebuild their inputs.

    A block whose output outgrows its streams takes digits from them, and what
    is rebuilt of them gives wrong gradients long before anything is NaN. This
    warns of it, once for each block, and names the one where it starts: the
    nearest to the output whose rebuilt input is off by more than `tolerance`,
    or the first whose output is not finite.

    Each measurement runs the model once on `batch`, eagerly, and rebuilds it
    once. Both streams of every block of a stack are kept meanwhile, so a small
    batch is the better one. Training is not touched: seeds, statistics and all
    other state stay as they are.

    `logs["reconstruction_error"]` holds the largest error: after a measured step
    of the blocks of all stacks, and at the end of an epoch of all that was
    measured in it. An epoch too short for a measurement has one at its end.

    Args:
        batch: Inputs of the model, as for `model.predict_on_batch()`.
        every: Positive integer, the number of training steps from one measurement
            to the next. Defaults to `100`.
        tolerance: Positive float, the error that is warned of: the norm of the
            difference over the norm, both streams together. Defaults to `1e-3`.
        training: Boolean, `training` for the model. Defaults to `True`.

    Raises:
        ValueError: for bad arguments, when the training of a model begins that
            neither holds a `ReversibleSequential` nor is converted, and when its
            call runs no stack on `batch`.

    Example:

    >>> import keras, numpy as np, revkeras
    >>> stack = revkeras.ReversibleSequential([keras.layers.Dense(2) for _ in range(4)])
    >>> model = keras.Sequential([keras.Input((4,)), stack])
    >>> model.compile("sgd", "mse")
    >>> x = np.ones((8, 4), "float32")
    >>> monitor = revkeras.ReconstructionMonitor(x[:2], every=2)
    >>> history = model.fit(x, x, batch_size=2, verbose=0, callbacks=[monitor])
    >>> history.history["reconstruction_error"][0] < 1e-5
    True
    """

    def __init__(
        self, batch: Any, every: int = 100, tolerance: float = 1e-3, training: bool = True
    ):
        super().__init__()
        tensors = keras.tree.flatten(batch)
        if not tensors or not all(hasattr(x, "shape") and hasattr(x, "dtype") for x in tensors):
            raise ValueError(
                "Invalid value for argument `batch`: expected the model's inputs, an array or a "
                f"list, tuple or dict of arrays; received one of type {type(batch).__name__}."
            )
        if isinstance(every, bool) or not hasattr(every, "__index__") or operator.index(every) < 1:
            raise ValueError(
                "Invalid value for argument `every`: expected a positive integer, received "
                f"every={every!r}."
            )
        if not isinstance(tolerance, numbers.Real) or not tolerance > 0:
            raise ValueError(
                "Invalid value for argument `tolerance`: expected a positive number, received "
                f"tolerance={tolerance!r}."
            )
        self.batch = keras.tree.map_structure(keras.ops.convert_to_tensor, batch)
        self.every = operator.index(every)
        self.tolerance = tolerance
        self.training = training

    def on_train_begin(self, logs: dict | None = None) -> None:
        name = self.model.name
        require_stack(f"ReconstructionMonitor has nothing to measure in model '{name}'", self.model)
        self._step = self._steps_before = 0
        self._warned: set[str] = set()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._steps_before, self._errors = self._step, []

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        # With `steps_per_execution` this comes once for several steps.
        before, self._step = self._step, self._steps_before + batch + 1
        if self._step // self.every > before // self.every:
            self._errors.append(self._measure())
            if logs is not None:
                logs["reconstruction_error"] = self._errors[-1]

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if logs is not None:
            logs["reconstruction_error"] = max(self._errors or [self._measure()])

    def _measure(self) -> float:
        """The largest error of all blocks; warns of those to warn of."""
        errors = []
        with observed(self.model, tracing(lambda trace: errors.append(self._judge(trace)))):
            self.model(self.batch, training=self.training)
        if not errors:
            raise ValueError(
                f"Model '{self.model.name}' called none of its stacks on the `batch` of "
                f"ReconstructionMonitor with training={self.training}, so there is nothing to "
                "measure. Pass inputs with which its call runs them."
            )
        return max(errors)

    def _judge(self, trace: Trace) -> float:
        for step, carry in zip(trace.steps, trace.carries[1:], strict=True):
            if not is_finite(carry.streams):
                self._warn(trace, step.name, "returns values that are not finite")
                return float("inf")
        errors = {i: relative_error(found, kept) for i, found, kept in trace.rebuilt()}
        first = next((i for i, error in errors.items() if error > self.tolerance), None)
        if first is not None:
            self._warn(
                trace,
                trace.steps[first].name,
                f"rebuilds its input with a relative error of {errors[first]:.2g} (tolerance "
                f"{self.tolerance:.2g}), the first on the way back from the output, so with "
                "memory_mode='reversible' its gradients and those of all blocks before it may be "
                "wrong; `revkeras.gradient_drift` tells by how much",
            )
        return max(errors.values())

    def _warn(self, trace: Trace, block: str, problem: str) -> None:
        place = f"{block} of ReversibleSequential '{trace.stack.name}'"
        if place not in self._warned:
            self._warned.add(place)
            warnings.warn(
                f"After training step {self._step}, {place} {problem}. Use a smaller learning "
                "rate, clip gradients or normalize what the block returns; or construct the "
                "stack with dtype='float64', an exact coupling or memory_mode='checkpoint', or "
                "convert the model with another `beta`.",
                stacklevel=2,
            )
