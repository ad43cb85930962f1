"""The same stack in two memory modes, and what a training step makes of each."""

import dataclasses

import keras
import numpy as np

import revkeras
from tests.differentiation import differentiated


@dataclasses.dataclass(frozen=True)
class Result:
    """All that a step computes, as NumPy arrays."""

    outputs: list
    losses: list
    input_gradients: list
    weight_gradients: list
    state: list


def run_step(layer, *inputs, graph=True, jit_compile=False, **arguments):
    """One forward and backward pass of `layer`; its state is put back afterwards."""
    inputs = [keras.ops.convert_to_tensor(x) for x in inputs]
    if not layer.built:
        layer(inputs[0] if len(inputs) == 1 else inputs, **arguments)
    outputs, losses, gradients, state = differentiated(layer, inputs, arguments, graph, jit_compile)
    n = len(gradients) - len(layer.trainable_variables)
    losses = sorted(losses, key=float)  # of a block that stands twice they come in any order
    return Result(*map(_numpy, (outputs, losses, gradients[:n], gradients[n:], state)))


def in_mode(layer, mode):
    """A copy of a built layer in another memory mode, with the same weights."""
    offload = layer.offload if mode == "reversible" else None
    config = {**layer.get_config(), "memory_mode": mode, "offload": offload}
    copy = revkeras.ReversibleSequential.from_config(config)
    copy.build_from_config(layer.get_build_config())
    assert len(copy.variables) == len(layer.variables)
    for a, b in zip(copy.variables, layer.variables):
        a.assign(b.value)
    _copy_trainable(layer, copy)
    return copy


def assert_same(found, expected, tolerance=2e-4):
    """Every array of two results agrees, relative to its largest value.

    Or to a twentieth of the largest of its field: a gradient that is zero but for
    rounding, such as a bias's before a batch normalization, has no scale of its own.
    """
    for field in dataclasses.fields(Result):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        assert len(ours) == len(theirs), field.name
        largest = max((_size(b) for b in theirs if b is not None), default=0.0)
        for i, (a, b) in enumerate(zip(ours, theirs)):
            assert (a is None) == (b is None), f"{field.name}[{i}]: {a} against {b}"
            if a is None:
                continue
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            scale = max(_size(b), 0.05 * largest, 1e-3)
            error = _size(a.astype("float64") - b.astype("float64")) / scale
            assert error <= tolerance, f"{field.name}[{i}] differs by {error:.2e}"


def assert_modes_agree(layer, *inputs, tolerance=2e-4, **options):
    """`"reversible"` and `"checkpoint"` do what plain differentiation does."""
    expected = run_step(in_mode(built(layer, *inputs, **options), "none"), *inputs, **options)
    for mode in ("reversible", "checkpoint"):
        assert_same(run_step(in_mode(layer, mode), *inputs, **options), expected, tolerance)


def fit(model, x, y, **options):
    """Trains a compiled model: the loss after each step, and all variables at the end."""
    losses = []
    note = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: losses.append(logs))
    model.fit(x, y, shuffle=False, verbose=0, callbacks=[note], **options)
    return [logs["loss"] for logs in losses], [np.array(v) for v in model.variables]


def assert_same_training(found, expected, tolerance=1e-4):
    """Two results of `fit` agree, step by step and at the end."""
    np.testing.assert_allclose(found[0], expected[0], rtol=tolerance)
    for a, b in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def built(layer, *inputs, graph=True, jit_compile=False, **arguments):
    layer(inputs[0] if len(inputs) == 1 else list(inputs), **arguments)
    return layer


def _size(array):
    return float(np.max(np.abs(array.astype("float64")), initial=0.0))


def _copy_trainable(source, target):
    for a, b in zip(source._flatten_layers(), target._flatten_layers()):
        if a._trainable != b._trainable:
            b.trainable = a._trainable


def _numpy(tensors):
    return [None if t is None else keras.ops.convert_to_numpy(t) for t in tensors]
