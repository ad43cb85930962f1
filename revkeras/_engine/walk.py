"""The ways through a stack: reversible, checkpointed, plain. They name no framework.

`reversible` runs a stack of steps and keeps its output alone. Its backward pass takes one step at
a time from the last to the first: rebuild the step's input from its output, differentiate the step
there, forget both, go on. `checkpointed` keeps each step's input, `plain` what the backend keeps.

Weights and states are arguments, never read inside, so every tape, every gradient of a gradient
and every exported model sees all of them. `residence` is where they live, see `residence.py`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras

from revkeras._engine import verbs
from revkeras._engine.carry import Carry, Layout
from revkeras._engine.step import Step, run_step, run_steps


def reversible(
    steps: Sequence[Step],
    layout: Layout,
    inputs: Carry,
    weights: list,
    state: list,
    residence: Any,
    show: Callable[[int, Carry], None] = lambda i, carry: None,
) -> tuple[Carry, list, dict]:
    """Runs `steps` and keeps nothing but their output for the gradient.

    The weights and states of a step are fetched when the step before it begins, so they are on
    their way while that computes. `show` gets each rebuilt input.

    Returns:
        `(outputs, sides, updates)`, see `revkeras._engine.step.run_steps`.
    """
    passes, known = [], {}  # of each step, and those that steps may share
    begun = []  # the carry that the step before began with

    def run_forward(step: Step, carry: Carry, weights: list, state: list) -> tuple:
        verbs.note_reads(step.owners)
        weights, state = verbs.fetch(residence, step, weights, state, begun)
        begun[:] = [carry]
        passes.append(verbs.passes_of(step, carry, weights, state, known))
        return passes[-1].forward(carry, weights, passes[-1].read(state))

    def run(inputs: Carry, weights: list, state: list) -> tuple[tuple, list]:
        passes.clear()  # a backend may trace this more than once
        begun.clear()
        carry, *results, found = run_steps(
            steps, layout.unpack(inputs), weights, state, run_forward
        )
        found = [own.read(left) for own, left in zip(passes, found, strict=True)]
        return (layout.pack(carry), *results), found

    def back(outputs: Carry, doutputs: Carry, dsides: list, weights: list, found: list) -> tuple:
        # Without the wait, what splits the output (and copies) runs right after the forward pass.
        carry = layout.unpack(verbs.after(doutputs, outputs))
        dcarry = layout.unpack_gradient(doutputs)
        dweights = [None] * len(weights)

        def fetch(i: int, gate: Carry) -> tuple[list, list]:
            own = [weights[p] for p in steps[i].weights]
            return verbs.fetch(residence, steps[i], own, found[i], gate)

        coming = fetch(len(steps) - 1, doutputs)
        for i in reversed(range(len(steps))):
            values, coming = coming, fetch(i - 1, carry) if i else None
            carry, dcarry, dmine = passes[i].backward(carry, dcarry, *values, dsides[i])
            show(i, carry)
            dmine = residence.release(steps[i].owners, dmine)
            dmine, (carry, dcarry) = verbs.use_up(steps[i].owners, dmine, (carry, dcarry))
            for p, d in zip(steps[i].weights, dmine, strict=True):
                dweights[p] = _sum(dweights[p], d)
        return layout.pack_gradient(dcarry, carry), dweights

    return verbs.custom_vjp(run, back, inputs, weights, state, residence.place, keeps="results")


def checkpointed(
    steps: Sequence[Step], layout: Layout, inputs: Carry, weights: list, state: list, residence: Any
) -> tuple[Carry, list, dict]:
    """Runs `steps` and keeps the input of each for the gradient."""
    run = functools.partial(_keeping_input, residence, {})
    carry, sides, updates, _ = run_steps(steps, layout.unpack(inputs), weights, state, run)
    return layout.pack(carry), sides, updates


def _keeping_input(
    residence: Any, known: dict, step: Step, carry: Carry, weights: list, state: list
) -> tuple:
    step = dataclasses.replace(step, recover=None, uncouple=None, settles=False)
    passes = []

    def run(carry: Carry, weights: list, state: list) -> tuple[tuple, list]:
        own, found = verbs.fetch(residence, step, weights, state, carry)
        passes.append(verbs.passes_of(step, carry, own, found, known))
        found = verbs.after(carry, passes[-1].read(found))
        return passes[-1].forward(carry, own, found), passes[-1].read(state)

    def back(carry: Carry, doutputs: Carry, dsides: list, weights: list, state: list) -> tuple:
        values = verbs.fetch(residence, step, weights, state, (doutputs, dsides))
        _, dcarry, dweights = passes[-1].backward(carry, doutputs, *values, dsides)
        return dcarry, residence.release(step.owners, dweights)

    return verbs.custom_vjp(run, back, carry, weights, state, residence.place, keeps="inputs")


def plain(
    steps: Sequence[Step],
    layout: Layout,
    inputs: Carry,
    weights: list,
    state: list,
    residence: Any,
    run: Callable = run_step,
) -> tuple[Carry, list, dict]:
    """Runs the steps, each by `run`, and leaves it to the backend what is kept."""

    def run_fetched(step: Step, carry: Carry, weights: list, state: list) -> tuple:
        return run(step, carry, *verbs.fetch(residence, step, weights, state, carry))

    carry, sides, updates, _ = run_steps(steps, layout.unpack(inputs), weights, state, run_fetched)
    return layout.pack(carry), sides, updates


def forward_pass(step: Step) -> Callable:
    """A step's way forwards, `forward(carry, weights, state) -> (carry, sides, updates)`."""

    def forward(carry: Carry, weights: list, state: list) -> tuple[Carry, list, dict]:
        carry, sides, updates = run_step(step, carry, weights, state)
        return verbs.finite(carry, f"{step.name} left"), sides, updates

    return forward


def backward_pass(step: Step, block: Callable) -> Callable:
    """A step's way back.

    `backward(carry, doutputs, weights, state, dsides) -> (inputs, dinputs, dweights)` gets the
    carry after the step, or the one before it where that is kept, and the gradient after it.
    Gradients are `None` where the loss does not depend on a value. `block` is the step's, as its
    forward pass runs it.
    """

    def rebuild_and_differentiate(
        outputs: Carry, doutputs: Carry, weights: list, state: list, dsides: list
    ) -> tuple[Carry, Carry, list]:
        source = step.recover(outputs, weights, state)
        (fx, _), through_block = verbs.vjp(
            lambda source, weights: step.block(source, weights, state)[:2], source, weights
        )
        same_fx = block(source, weights, state)[0] if step.exact else fx
        inputs = step.uncouple(outputs, same_fx, source)
        inputs = verbs.finite(inputs, f"The input of {step.name} was rebuilt with")
        pull_back = step.pull_back or (lambda *args: _pulled_back(step.couple, *args))
        _, through_source = verbs.vjp(step.source, inputs)
        dinputs, dfx = pull_back(inputs, fx, doutputs)
        dsource, dweights = through_block((dfx, dsides))
        (more,) = through_source(dsource)
        return inputs, _sum(dinputs, more), dweights

    def differentiate(
        inputs: Carry, doutputs: Carry, weights: list, state: list, dsides: list
    ) -> tuple[Carry, Carry, list]:
        _, pull_back = verbs.vjp(
            lambda carry, weights: run_step(step, carry, weights, state)[:2], inputs, weights
        )
        return inputs, *pull_back((doutputs, dsides))

    return rebuild_and_differentiate if step.recover else differentiate


def _pulled_back(couple: Callable, carry: Carry, fx: list, dcarry: Carry) -> tuple[Carry, list]:
    return verbs.vjp(couple, carry, fx)[1](dcarry)


def _sum(a: Any, b: Any) -> Any:
    """The sums of gradients in two equal structures, any of which may be missing."""
    return keras.tree.map_structure(
        lambda d, e: d + e if d is not None and e is not None else e if d is None else d, a, b
    )
