"""Layers that start from their first batch start from the global one, on all workers alike."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from revkeras._engine import verbs, walk
from revkeras._keras import flatten_layers, has_training_argument
from revkeras._stack.memory_modes import running
from revkeras._stack.reversible_sequential import ReversibleSequential
from revkeras.checkpoint import Checkpoint
from revkeras.distribute.building import has_call
from revkeras.layers import ActNorm


def start_together(model: keras.Model, x: Any, engine: Any) -> None:
    """Starts the `ActNorm` layers of a model that have not started, before its training step.

    The model is called once more, on the same numbers as in the step, and with nothing else
    changed by it; each layer averages its statistics over the workers in that call. In the
    step they could not: a block that is replayed must not communicate.

    Args:
        model: A built model.
        x: This rank's rows of the first batch.
        engine: The engine that the ranks communicate by.

    Raises:
        ValueError: if the model cannot be called.
    """
    layers = [layer for layer in flatten_layers(model) if isinstance(layer, ActNorm)]
    with verbs.eager_scope():
        if all(bool(layer.started.value) for layer in layers):
            return
    if not has_call(model):
        raise ValueError(
            f"The model '{model.name}' has no `call()`, by which its layers "
            f"{[layer.name for layer in layers]} could start from the global batch. Start them "
            "before `fit`: call what they are in on one batch with training=True, the same on "
            "all workers."
        )
    state = [v for layer in layers for v in (layer.mean, layer.log_std, layer.started)]
    found = verbs.snapshot(state)
    started = ops.all(ops.stack(found[2::3]))

    def start() -> list:
        scope = keras.StatelessScope(list(zip(state, found)), collect_losses=True)
        with scope, _averaged(layers, engine), _called_plainly(model):
            if has_training_argument(model):
                model(x, training=True)
            else:
                model(x)
        return [scope.get_current_value(v) for v in state]

    for v, value in zip(state, ops.cond(started, lambda: found, start)):
        v.assign(value)


@contextlib.contextmanager
def _averaged(layers: list[ActNorm], engine: Any) -> Iterator[None]:
    """Within it, what the layers take from a batch is a mean over the workers."""
    for layer in layers:
        layer._over_batch = lambda mean: engine.all_reduce(mean, op="mean")
    try:
        yield
    finally:
        for layer in layers:
            del layer._over_batch


@contextlib.contextmanager
def _called_plainly(model: keras.Model) -> Iterator[None]:
    """Within it, layers that would replay others call them as any Keras layer does."""
    layers = flatten_layers(model)
    stacks = [layer for layer in layers if isinstance(layer, ReversibleSequential)]
    checkpoints = [layer for layer in layers if isinstance(layer, Checkpoint)]
    for checkpoint in checkpoints:
        checkpoint.call = checkpoint.layer
    try:
        with running(dict.fromkeys(stacks, walk.plain)):
            yield
    finally:
        for checkpoint in checkpoints:
            del checkpoint.call
