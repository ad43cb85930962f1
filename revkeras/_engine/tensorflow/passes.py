"""The two ways through one step: forwards, and back with its gradient.

Steps that trace to the same graph share them, so that a stack is traced and
compiled in the time of one block. Classes and configurations do not tell which
are the same: what a layer does may depend on anything that Python can reach.
"""

import dataclasses
import functools
from collections.abc import Callable

import tensorflow as tf

from revkeras._engine.carry import Carry
from revkeras._engine.step import Step
from revkeras._engine.tensorflow.compilation import compiled
from revkeras._engine.tensorflow.fingerprint import fingerprint
from revkeras._engine.tensorflow.graph import (
    kept_by_graph,
    one_piece,
    specs,
)
from revkeras._engine.tensorflow.replayable import refuse_changing, refuse_unreplayable
from revkeras._engine.tensorflow.unread import as_tensors
from revkeras._engine.tensorflow.vectorization import rebuilding_once
from revkeras._engine.walk import backward_pass, forward_pass
from revkeras.debugging import checks_enabled


@dataclasses.dataclass(frozen=True)
class Passes:
    """The two ways through a step, each one operation of the graph.

    Attributes:
        forward: See `forward_pass`.
        backward: See `backward_pass`.
        uses: Whether the step reads each of its states.
    """

    forward: Callable
    backward: Callable
    uses: tuple[bool, ...]

    def read(self, state: list) -> list:
        """The states as tensors, read where the step uses them."""
        return as_tensors(state, self.uses)


def passes_of(step: Step, carry: Carry, weights: list, state: list, _: dict) -> Passes:
    """The passes of a step; in a graph, those of the first step in it that is the same."""
    if tf.executing_eagerly():
        return _passes(step, (True,) * len(state))
    values = carry, weights, state
    # A message of `revkeras.debugging` names the step.
    flags = step.traits, checks_enabled() and step.name
    known = kept_by_graph("structures", dict)
    lengths = tuple(len(part) for part in (*carry, weights, state))
    structure = step.structure and (
        step.structure,
        lengths,
        specs(tf.nest.flatten(values)),
        flags,
    )
    if structure in known:
        first, found = known[structure]
        step.packing.take_over(first.packing)
        return found
    found = _passes_of_same_graph(step, values, flags)
    if structure:
        known[structure] = step, found
    return found


def _passes_of_same_graph(step: Step, values: tuple, flags: tuple) -> Passes:
    traced = _all_that_differs(step)
    found = fingerprint(traced, values)
    if not step.inference:
        refuse_unreplayable(step.name, found.operations)
    if not found.shows_gradient:
        traced = _all_that_differs(step, with_gradient=True)
        found = fingerprint(traced, values)
    known = kept_by_graph("passes", dict)
    if (found, flags) not in known:
        if step.unproven and fingerprint(traced, values) != found:
            refuse_changing(step.name, found.operations)
        n_state = len(values[2])
        uses = found.is_used[len(found.is_used) - n_state :]
        known[found, flags] = _passes(step, uses, attends="Softmax" in found.operations)
    return known[found, flags]


def _all_that_differs(step: Step, with_gradient: bool = False) -> Callable:
    """What shows all in which the passes of steps may differ."""

    def traced(carry: Carry, weights: list, state: list) -> tuple:
        source = step.source(carry)
        fx, sides, updates = step.block(source, weights, state)
        after = step.couple(carry, fx)
        left = [updates.get(i, value) for i, value in enumerate(state)] if step.settles else state
        known, rebuilt = carry, ()
        if step.recover:
            known = after
            rebuilt = step.recover(after, weights, left), step.uncouple(after, fx, source)
        results = source, fx, sides, updates, after, rebuilt
        if not with_gradient:
            return results
        return results, backward_pass(step, step.block)(known, after, weights, left, sides)

    return traced


def _passes(step: Step, uses: tuple[bool, ...], attends: bool = False) -> Passes:
    # Grappler moves the factor of attention's scores to the softmax in its gradient, which is
    # then there twice: four matrices of scores where three do, and no time is won by it. GELU
    # is a tenth slower without such moves.
    whole = compiled if step.compiled else functools.partial(one_piece, as_written=attends)
    # Grappler fuses other operations where it differentiates than in the forward pass, and
    # their last bits differ. In a function of its own it does the same to a block each time.
    block = one_piece(step.block) if step.exact else step.block
    forward = forward_pass(dataclasses.replace(step, block=block))
    # Outside of training nothing needs to be kept apart, and TFLite converts no function calls.
    is_open = step.inference and not step.compiled and not tf.executing_eagerly()
    backward = rebuilding_once(whole(backward_pass(step, block)))
    return Passes(forward if is_open else whole(forward), backward, uses)
