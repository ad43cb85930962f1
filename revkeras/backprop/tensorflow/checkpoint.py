"""Gradient checkpointing, on `tf.custom_gradient`."""

from collections.abc import Callable

import tensorflow as tf

from revkeras.backprop.tensorflow.graph import (
    after,
    detached,
    one_piece,
    pull_back,
    refuse_untracked,
)


def checkpoint(function: Callable, inputs: list, weights: list, state: list) -> tuple[list, dict]:
    """Runs `function(inputs, weights, state) -> (outputs, updates)`; keeps its arguments."""
    arguments = inputs, weights

    @tf.custom_gradient
    def run(inputs, weights, state):
        with tf.GradientTape() as watcher:
            inputs, weights, state = detached((inputs, weights, state))
            results = function(inputs, weights, after(inputs, state))
        refuse_untracked(watcher.watched_variables())

        def grad(*gradients):
            doutputs, _ = tf.nest.pack_sequence_as(results, gradients)

            def differentiate(inputs, weights, state, doutputs):
                with tf.GradientTape() as tape:
                    tape.watch([inputs, weights])
                    outputs, _ = function(inputs, weights, state)
                return pull_back(tape, outputs, doutputs, [*inputs, *weights])

            return [
                *one_piece(differentiate)(*arguments, state, doutputs),
                *[None] * len(state),
            ]

        return results, grad

    return run(inputs, weights, state)
