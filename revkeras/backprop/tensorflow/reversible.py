"""The gradient engine: discard, rebuild, differentiate.

`reversible` runs a stack of steps and keeps its output alone. Its backward pass
takes one step at a time from the last to the first: rebuild the step's input
from its output, differentiate the step there, forget both, go on.

Weights and states are arguments, never read inside, so every tape, every gradient
of a gradient and every exported model sees all of them.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from revkeras.backprop.tensorflow.custom_gradient import stand_ins, with_gradient
from revkeras.backprop.tensorflow.graph import add_gradients, detached
from revkeras.backprop.tensorflow.keeping import Keeping
from revkeras.backprop.tensorflow.passes import passes
from revkeras.backprop.tensorflow.replayable import refuse_untracked
from revkeras.backprop.tensorflow.residence import InPlace
from revkeras.backprop.tensorflow.unread import Unread, as_tensors, where_read
from revkeras.backprop.tensorflow.updates import note_reads, use_up
from revkeras.step import Layout, Step, run_steps


def reversible(
    steps: Sequence[Step],
    layout: Layout,
    inputs: list,
    weights: list,
    state: list,
    residence: Any = None,
) -> tuple[list, list, dict]:
    """Runs `steps` and keeps nothing but their output for the gradient.

    `residence` is where the weights and states live, see `residence.py`. Those of a step are
    fetched when the step before it begins, so they are on their way while that computes.

    Returns:
        `(outputs, sides, updates)`, see `revkeras.step.run_steps`.
    """
    residence = residence or InPlace()
    tracked = []  # the outputs as tapes know them: through these, gradients have gradients
    all_passes = []
    begun = []  # the carry that the step before began with

    def fetched(step, weights, state, gate):
        values = [*weights, *state]
        owners = [
            owner
            for owner, value in zip((*step.owners, *step.state_owners), values, strict=True)
            if not isinstance(value, Unread)
        ]
        values = where_read(lambda values: residence.fetch(owners, values, gate), values)
        return values[: len(weights)], values[len(weights) :]

    def run_forward(step, carry, weights, state):
        note_reads(step.owners)
        weights, state = fetched(step, weights, state, begun)
        begun[:] = carry
        all_passes.append(passes(step, carry, weights, state))
        state = as_tensors(state, all_passes[-1].uses)
        return all_passes[-1].forward(carry, weights, state)

    def run(inputs, _):
        with tf.GradientTape() as watcher:
            with residence.place():
                own = detached(weights), where_read(detached, state)
            carry, sides, updates, replayed = run_steps(
                steps, layout.split(detached(inputs)), *own, run_forward
            )
        refuse_untracked(watcher.watched_variables())
        results = layout.join(carry), sides, updates

        def grad(kept, *gradients):
            weights, replayed = kept
            gradients, dsides, _ = tf.nest.pack_sequence_as(results, gradients)
            begin = [d for d in gradients if d is not None]
            # Without the wait, the executor splits (and copies) right after the forward pass.
            with tf.control_dependencies(begin):
                carry, dcarry = layout.split(tracked), _split(layout, gradients)
            dweights = [None] * len(weights)

            def fetch(i, gate):
                own = [weights[p] for p in steps[i].weights]
                return fetched(steps[i], own, replayed[i], gate)

            coming = fetch(len(steps) - 1, begin)
            for i in reversed(range(len(steps))):
                values, coming = coming, fetch(i - 1, carry) if i else None
                carry, dcarry, dmine = all_passes[i].backward(carry, dcarry, *values, dsides[i])
                dmine = residence.release(steps[i].owners, dmine)
                dmine, (carry, dcarry) = use_up(steps[i].owners, dmine, (carry, dcarry))
                for p, d in zip(steps[i].weights, dmine, strict=True):
                    dweights[p] = add_gradients(dweights[p], d)
            return [*_join(layout, carry, dcarry), *dweights]

        replayed = [as_tensors(left, found.uses) for left, found in zip(replayed, all_passes)]
        return results, Keeping.of(grad, (weights, replayed))

    with residence.place():
        scalars = stand_ins(weights)
    outputs, sides, updates = with_gradient(run, inputs, scalars)
    tracked.extend(outputs)
    return outputs, sides, updates


def _split(layout: Layout, gradients: list) -> list:
    """The streams' gradients, from those of the tensors that hold them, or `None`."""
    if layout.n_tensors == 1 and gradients[0] is None:
        return [None, *gradients]
    return layout.split(gradients)


def _join(layout: Layout, carry: list, gradients: list) -> list:
    """Undoes `_split`."""
    streams = gradients[:2]
    if layout.n_tensors == 1:
        if all(d is None for d in streams):
            return gradients[1:]
        streams = [tf.zeros_like(x) if d is None else d for x, d in zip(carry, streams)]
    return layout.join([*streams, *gradients[2:]])
