"""The gradient engine, on `tf.custom_gradient`.

`reversible` runs a stack of steps and keeps its output alone. Its backward pass
takes one step at a time from the last to the first: rebuild the step's input
from its output, differentiate the step there, forget both, go on. `checkpoint`
keeps a function's inputs and computes the function again to differentiate it.

Weights and states are arguments, never captured, so every tape, every gradient
of a gradient and every exported model sees all of them.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from revkeras.step import Layout, Step, run_step, run_steps

eager_scope = tf.init_scope


def snapshot(variables: Sequence) -> list[tf.Tensor]:
    """The variables' values as they are now.

    `tf.identity`, because `variable.value` is the `tf.Variable` itself: a seed
    read through it in the backward pass has already moved on.
    """
    return [tf.identity(v.value) for v in variables]


def reversible(
    steps: Sequence[Step], layout: Layout, inputs: list, weights: list, state: list
) -> tuple[list, list, dict]:
    """Runs `steps` and keeps nothing but their output for the gradient.

    Returns:
        `(outputs, sides, updates)`, see `revkeras.step.run_steps`.
    """
    tracked = []  # the outputs as tapes know them: through these, gradients have gradients

    @tf.custom_gradient
    def run(inputs, weights, state):
        with tf.GradientTape() as watcher:
            inputs, weights, state = _detached((inputs, weights, state))
            streams, sides, updates, seen = run_steps(
                steps, layout.split(inputs), weights, state, _run_in_turn
            )
        _refuse_untracked(watcher.watched_variables())
        results = layout.join(streams), sides, updates

        def grad(*gradients):
            gradients, dsides, _ = tf.nest.pack_sequence_as(results, gradients)
            # Without the wait, the executor splits (and copies) right after the forward pass.
            with tf.control_dependencies(gradients):
                streams, dstreams = layout.split(tracked), layout.split(gradients)
            dweights = [None] * len(outer_weights)
            for step, values, dside in zip(reversed(steps), reversed(seen), reversed(dsides)):
                mine = [outer_weights[i] for i in step.weights]
                backward = _one_piece(_rebuild_and_differentiate(step))
                streams, dstreams, dmine = backward(streams, dstreams, mine, values, dside)
                for i, d in zip(step.weights, dmine, strict=True):
                    dweights[i] = d if dweights[i] is None else dweights[i] + _or_zero(d)
            return [*layout.join(dstreams), *dweights, *[None] * len(state)]

        return results, grad

    outer_weights = weights
    outputs, sides, updates = run(inputs, weights, state)
    tracked.extend(outputs)
    return outputs, sides, updates


def _rebuild_and_differentiate(step: Step) -> Callable:
    """One step backwards: from its output and its output's gradient to its input's."""

    def backward(outputs, doutputs, weights, state, dsides):
        source = step.source(outputs)
        with tf.GradientTape() as block_tape:
            block_tape.watch([source, *weights])
            fx, sides, _ = step.block(source, weights, state)
        inputs = step.uncouple(outputs, fx)
        with tf.GradientTape() as coupling_tape:
            coupling_tape.watch([*inputs, *fx])
            again = step.couple(inputs, fx)
        gradients = coupling_tape.gradient(again, [*inputs, *fx], doutputs, "zero")
        dinputs, dfx = gradients[: len(inputs)], gradients[len(inputs) :]
        dsource, *dweights = _pull_back(
            block_tape, [*fx, *sides], [*dfx, *dsides], [source, *weights]
        )
        if dsource is not None:
            dinputs[1] += dsource
        return inputs, dinputs, dweights

    return backward


def checkpoint(function: Callable, inputs: list, weights: list, state: list) -> tuple[list, dict]:
    """Runs `function(inputs, weights, state) -> (outputs, updates)`; keeps its arguments."""
    arguments = inputs, weights

    @tf.custom_gradient
    def run(inputs, weights, state):
        with tf.GradientTape() as watcher:
            inputs, weights, state = _detached((inputs, weights, state))
            results = function(inputs, weights, _after(inputs, state))
        _refuse_untracked(watcher.watched_variables())

        def grad(*gradients):
            doutputs, _ = tf.nest.pack_sequence_as(results, gradients)

            def differentiate(inputs, weights, state, doutputs):
                with tf.GradientTape() as tape:
                    tape.watch([inputs, weights])
                    outputs, _ = function(inputs, weights, state)
                return _pull_back(tape, outputs, doutputs, [*inputs, *weights])

            return [
                *_one_piece(differentiate)(*arguments, state, doutputs),
                *[None] * len(state),
            ]

        return results, grad

    return run(inputs, weights, state)


def _pull_back(tape: tf.GradientTape, outputs: list, doutputs: list, inputs: list) -> list:
    """The gradients at `inputs`, `None` where nothing depends on one."""
    pairs = [(y, dy) for y, dy in zip(outputs, doutputs, strict=True) if y.dtype.is_floating]
    gradients = tape.gradient([y for y, _ in pairs], inputs, [dy for _, dy in pairs])
    return [None if d is None else tf.convert_to_tensor(d) for d in gradients]


def _one_piece(function: Callable) -> Callable:
    """`function` as one indivisible operation of the graph.

    Grappler merges a recomputation with the forward pass (Dropout's masks stayed
    alive, one a block) and the executor puts off weight gradients and keeps what
    they need. It does neither across a function that it must not inline.
    """
    if tf.executing_eagerly():
        # Copies, as of a graph's arguments: were one tensor given twice, a tape would
        # give each of its two places the gradient of both.
        return lambda *args: function(*tf.nest.map_structure(tf.identity, args))
    return tf.function(function, autograph=False, experimental_attributes={"_noinline": True})


def _run_in_turn(step: Step, streams: list, weights: list, state: list) -> tuple:
    return run_step(step, streams, weights, _after(streams, state))


def _after(tensors: list, state: list) -> list:
    """`state`, once `tensors` are there.

    Dropout's draws depend on the seed alone: the executor made those of later
    blocks while the first were computing, and the drawn tensors waited in memory.
    """
    with tf.control_dependencies(tensors):
        return [tf.identity(value) for value in state]


def _detached(tensors):
    """The tensors, unknown to any tape: what is computed from them is not recorded."""
    return tf.nest.map_structure(tf.stop_gradient, tensors)


def _or_zero(gradient):
    return 0 if gradient is None else gradient


def _refuse_untracked(variables: Sequence[tf.Variable]) -> None:
    if variables:
        raise ValueError(
            "A block reads variables that Keras does not track as its own, so no gradient "
            f"could reach them: {[v.name for v in variables]}. Make them weights of the "
            "block: create them with `self.add_weight(...)` in `build()`, or hold the layers "
            "that own them in attributes of the block."
        )
