"""The gradient engine: discard, rebuild, differentiate.

`reversible` runs a stack of steps and keeps its output alone. Its backward pass
takes one step at a time from the last to the first: rebuild the step's input
from its output, differentiate the step there, forget both, go on.

Weights and states are arguments, never captured, so every tape, every gradient
of a gradient and every exported model sees all of them.
"""

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf

from revkeras.backprop.tensorflow.graph import (
    add_gradients,
    after,
    detached,
    one_piece,
    or_zeros,
    pull_back,
    refuse_untracked,
)
from revkeras.debugging import checks_enabled
from revkeras.step import Layout, Step, run_step, run_steps


def reversible(
    steps: Sequence[Step], layout: Layout, inputs: list, weights: list, state: list
) -> tuple[list, list, dict]:
    """Runs `steps` and keeps nothing but their output for the gradient.

    Returns:
        `(outputs, sides, updates)`, see `revkeras.step.run_steps`.
    """
    tracked = []  # the outputs as tapes know them: through these, gradients have gradients
    # Grappler fuses other operations where it differentiates than in the forward pass, and
    # their last bits differ. In a function of its own it does the same to a block each time.
    blocks = [one_piece(step.block) if step.exact else step.block for step in steps]
    forward = [dataclasses.replace(s, block=b) for s, b in zip(steps, blocks, strict=True)]

    @tf.custom_gradient
    def run(inputs, weights, state):
        with tf.GradientTape() as watcher:
            inputs, weights, state = detached((inputs, weights, state))
            carry, sides, updates, replayed = run_steps(
                forward, layout.split(inputs), weights, state, _run_in_turn
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
                backward = one_piece(_rebuild_and_differentiate(steps[i], blocks[i]))
                carry, dcarry, dmine = backward(carry, dcarry, mine, replayed[i], dsides[i])
                for p, d in zip(steps[i].weights, dmine, strict=True):
                    dweights[p] = add_gradients(dweights[p], d)
            return [*layout.join(dcarry), *dweights, *[None] * len(state)]

        return results, grad

    outer_weights = weights
    outputs, sides, updates = run(inputs, weights, state)
    tracked.extend(outputs)
    return outputs, sides, updates


def _rebuild_and_differentiate(step: Step, block: Callable) -> Callable:
    """One step backwards: from its output and its output's gradient to its input's."""

    def backward(outputs, doutputs, weights, state, dsides):
        source = step.recover(outputs, weights, state)
        with tf.GradientTape() as block_tape:
            block_tape.watch([source, weights])
            fx, sides, _ = step.block(source, weights, state)
        same_fx = block(source, weights, state)[0] if step.exact else fx
        inputs = step.uncouple(outputs, same_fx, source)
        if checks_enabled():
            message = f"The input of {step.name} was rebuilt with values that are not finite"
            inputs = _checked(inputs, message)
        with tf.GradientTape(persistent=True) as coupling_tape:
            coupling_tape.watch([inputs, fx])
            again, source_again = step.couple(inputs, fx), step.source(inputs)
        gradients = pull_back(coupling_tape, again, doutputs, [*inputs, *fx])
        dinputs, dfx = gradients[: len(inputs)], or_zeros(gradients[len(inputs) :], fx)
        gradients = pull_back(block_tape, [*fx, *sides], [*dfx, *dsides], [*source, *weights])
        dsource, dweights = gradients[: len(source)], gradients[len(source) :]
        more = pull_back(coupling_tape, source_again, or_zeros(dsource, source), inputs)
        dinputs = or_zeros(map(add_gradients, dinputs, more), inputs)
        return inputs, dinputs, dweights

    return backward


def _run_in_turn(step: Step, carry: list, weights: list, state: list) -> tuple:
    carry, sides, updates = run_step(step, carry, weights, after(carry, state))
    if checks_enabled():
        carry = _checked(carry, f"{step.name} left values that are not finite")
    return carry, sides, updates


def _checked(carry: list, message: str) -> list:
    return [tf.debugging.check_numerics(x, message) for x in carry]
