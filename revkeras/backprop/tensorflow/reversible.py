"""The gradient engine: discard, rebuild, differentiate.

`reversible` runs a stack of steps and keeps its output alone. Its backward pass
takes one step at a time from the last to the first: rebuild the step's input
from its output, differentiate the step there, forget both, go on.

Weights and states are arguments, never captured, so every tape, every gradient
of a gradient and every exported model sees all of them.
"""

from collections.abc import Sequence

import tensorflow as tf

from revkeras.backprop.tensorflow.graph import add_gradients, detached, refuse_untracked
from revkeras.backprop.tensorflow.passes import passes
from revkeras.backprop.tensorflow.updates import note_reads, use_up
from revkeras.step import Layout, Step, run_steps


def reversible(
    steps: Sequence[Step], layout: Layout, inputs: list, weights: list, state: list
) -> tuple[list, list, dict]:
    """Runs `steps` and keeps nothing but their output for the gradient.

    Returns:
        `(outputs, sides, updates)`, see `revkeras.step.run_steps`.
    """
    tracked = []  # the outputs as tapes know them: through these, gradients have gradients
    all_passes = []

    def run_forward(step, *values):
        note_reads(step.owners)
        all_passes.append(passes(step, *values))
        return all_passes[-1].forward(*values)

    @tf.custom_gradient
    def run(inputs, weights, state):
        with tf.GradientTape() as watcher:
            inputs, weights, state = detached((inputs, weights, state))
            carry, sides, updates, replayed = run_steps(
                steps, layout.split(inputs), weights, state, run_forward
            )
        refuse_untracked(watcher.watched_variables())
        results = layout.join(carry), sides, updates

        def grad(*gradients):
            gradients, dsides, _ = tf.nest.pack_sequence_as(results, gradients)
            # Without the wait, the executor splits (and copies) right after the forward pass.
            with tf.control_dependencies(gradients):
                carry, dcarry = layout.split(tracked), layout.split(gradients)
            dweights = [None] * len(outer_weights)
            for i in reversed(range(len(steps))):
                mine = [outer_weights[p] for p in steps[i].weights]
                backward = all_passes[i].backward
                carry, dcarry, dmine = backward(carry, dcarry, mine, replayed[i], dsides[i])
                dmine, (carry, dcarry) = use_up(steps[i].owners, dmine, (carry, dcarry))
                for p, d in zip(steps[i].weights, dmine, strict=True):
                    dweights[p] = add_gradients(dweights[p], d)
            return [*layout.join(dcarry), *dweights, *[None] * len(state)]

        return results, grad

    outer_weights = weights
    outputs, sides, updates = run(inputs, weights, state)
    tracked.extend(outputs)
    return outputs, sides, updates
