"""A model's stacks, run one block at a time, with what goes from each to the next."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras

from revkeras._engine import verbs
from revkeras._engine.carry import Carry, Layout
from revkeras._engine.step import Step, run_step, run_steps
from revkeras._keras import flatten_layers
from revkeras._stack.memory_modes import running
from revkeras._stack.reversible_sequential import ReversibleSequential
from revkeras._stack.stateless import is_built, spec_of
from revkeras.convert.momentum_model import MomentumModel


@dataclasses.dataclass(frozen=True)
class Trace:
    """One run of a stack.

    Attributes:
        stack: The `ReversibleSequential`.
        steps: Its steps.
        carries: What each step was run on, and at the end what the last one gave.
        weights: The weights of each step.
        replayed: The state that each step is to be replayed on.
    """

    stack: ReversibleSequential
    steps: list[Step]
    carries: list[Carry]
    weights: list[list]
    replayed: list[list]

    def rebuilt(self) -> Iterator[tuple[int, tuple, tuple]]:
        """What each step was run on, rebuilt from the end, the last step first.

        Yields:
            `(index, streams, kept)`: the step, the two streams, and what they were.
        """
        carry = self.carries[-1]
        for i in reversed(range(len(self.steps))):
            step, operands = self.steps[i], (self.weights[i], self.replayed[i])
            source = step.recover(carry, *operands)
            fx, _, _ = step.block(source, *operands)
            carry = step.uncouple(carry, fx, source)
            yield i, carry.streams, self.carries[i].streams


def trace(
    stack: ReversibleSequential,
    steps: list[Step],
    layout: Layout,
    held: Carry,
    weights: list,
    state: list,
    residence: Any,
) -> tuple[Trace, tuple[Carry, list, dict]]:
    """Runs a stack's steps: the trace, and what ways through a stack return."""
    carries, own = [], []
    steps = [verbs.replaying(step) for step in steps]

    def run(step: Step, carry: Carry, weights: list, state: list) -> tuple[Carry, list, dict]:
        weights, state = verbs.fetch(residence, step, weights, state, carry)
        carries.append(carry)
        own.append(weights)
        return run_step(step, carry, weights, state)

    carry, sides, updates, replayed = run_steps(steps, layout.unpack(held), weights, state, run)
    found = Trace(stack, steps, [*carries, carry], own, replayed)
    return found, (layout.pack(carry), sides, updates)


def tracing(visit: Callable[[Trace], Any]) -> Callable:
    """The way, for `observed`, that shows `visit` the trace of each stack that runs."""

    def way(*args: Any) -> tuple[Carry, list, dict]:
        found, results = trace(*args)
        visit(found)
        return results

    return way


@contextlib.contextmanager
def observed(layer: keras.layers.Layer, way: Callable, inside: Callable | None = None) -> Iterator:
    """While it lasts, the stacks of `layer` run in another way, and no variable changes.

    In other threads they run as ever.

    Args:
        layer: A layer or model.
        way: `way(stack, steps, layout, held, weights, state, residence)`, as the functions
            of `revkeras._engine.walk` but for the first argument. A stack inside a block of
            another one is a part of that block and not run by it.
        inside: How such stacks run, or `None` for their own memory modes.
    """
    stacks = _stacks(layer)
    parts = [inner for outer in stacks for inner in _stacks(outer) if inner is not outer]
    ways = {stack: functools.partial(way, stack) for stack in stacks if stack not in parts}
    if inside:
        ways.update(dict.fromkeys(parts, inside))
    with running(ways), keras.StatelessScope():
        yield


def require_stack(problem: str, layer: Any) -> None:
    """Raises unless `layer` is or holds a stack; `problem` starts the message."""
    if not isinstance(layer, keras.layers.Layer) or not _stacks(layer):
        raise ValueError(
            f"{problem}: expected a ReversibleSequential, or a model that holds one or was "
            "converted by `revkeras.to_momentum_net` with a `beta` that is large enough to "
            f"rebuild inputs instead of keeping them; received {layer!r} (of type "
            f"{type(layer).__name__})."
        )


def ensure_built(layer: keras.layers.Layer, inputs: Any, arguments: dict) -> None:
    """Creates the layer's variables if they are missing, without running it."""
    if not is_built(layer):
        layer(spec_of(inputs), **spec_of(arguments))


def _stacks(layer: keras.layers.Layer) -> list[ReversibleSequential]:
    """The stacks in a layer, and those that the runs of converted models in it have made."""
    found = []
    for inner in flatten_layers(layer):
        if isinstance(inner, ReversibleSequential):
            found.append(inner)
        elif isinstance(inner, MomentumModel):
            found.extend(run.stack for run in inner.momentum_runs if run.rebuilds)
    return list({id(x): x for x in found}.values())
