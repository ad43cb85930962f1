"""Gradient checkpointing: keep the arguments of a function, and call it again."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from revkeras._engine.tensorflow.custom_gradient import with_gradient
from revkeras._engine.tensorflow.graph import after, detached, one_piece, vjp
from revkeras._engine.tensorflow.replayable import check_replays, refuse_untracked
from revkeras._engine.tensorflow.residence import InPlace
from revkeras._engine.tensorflow.tracing import tensors_of
from revkeras._engine.tensorflow.unread import read_as_used


def checkpoint(
    function: Callable,
    inputs: Any,
    weights: list,
    state: list,
    owners: Sequence = (),
    residence: Any = None,
    unproven: str | None = None,
) -> tuple[Any, dict]:
    """Runs `function(inputs, weights, state) -> (outputs, updates)`; keeps its arguments.

    With a `residence`, the weights and state live there, and are fetched for each of the two runs;
    `owners` are the variables, or tensors, whose values they are. `unproven` is what errors call a
    function of which it is not known that it computes the same each time.
    """
    residence = residence or InPlace()
    state = read_as_used(function, (inputs, weights), state)
    arguments, n_weights = (inputs, weights), len(weights)

    def fetched(weights, state, gate):
        values = residence.fetch(owners, [*weights, *state], tensors_of(gate))
        return values[:n_weights], values[n_weights:]

    def run(inputs, weights, state):
        with tf.GradientTape() as watcher:
            inputs, weights, state = detached((inputs, weights, state))
            own, found = fetched(weights, state, inputs)
            if unproven:
                check_replays(unproven, function, (inputs, own, found))
            results = function(inputs, own, after(inputs, found))
        refuse_untracked(watcher.watched_variables())

        def grad(*gradients):
            doutputs, _ = tf.nest.pack_sequence_as(results, gradients)

            def differentiate(inputs, weights, state, doutputs):
                _, pull_back = vjp(lambda *args: function(*args, state)[0], inputs, weights)
                return pull_back(doutputs)

            inputs, weights = arguments
            values = fetched(weights, state, doutputs)
            dinputs, dweights = one_piece(differentiate)(inputs, *values, doutputs)
            dweights = residence.release(owners[:n_weights], dweights)
            return [*tf.nest.flatten(dinputs), *dweights, *[None] * len(state)]

        return results, grad

    return with_gradient(run, inputs, weights, state)
