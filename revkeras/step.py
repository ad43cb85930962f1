"""One step of a reversible stack, as pure functions of tensors."""

import dataclasses
from collections.abc import Callable, Sequence


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a layer's inputs hold the two streams. `split` and `join` undo each other.

    Attributes:
        split: From the list of input tensors to the two streams.
        join: From two streams back to the list of tensors.
    """

    split: Callable[[list], list]
    join: Callable[[list], list]


@dataclasses.dataclass(frozen=True)
class Step:
    """A block, the coupling that takes its output into a stream, and what it reads.

    Attributes:
        block: `block(x, weights, state) -> (fx, sides, updates)`, where `x` is
            the second stream and `fx` a list of tensors. `sides` are
            its further outputs: its losses and what it returns beside `fx`.
            `updates` has the new values of `state` by their position in it.
        couple: `couple([x0, x1], fx) -> [y0, y1]`.
        source: `source([y0, y1]) -> x1`.
        uncouple: `uncouple([y0, y1], fx) -> [x0, x1]`.
        weights: The positions, in the stack's list, of the values that the
            block is differentiated by.
        state: The positions of its other values in the stack's list.
    """

    block: Callable
    couple: Callable
    source: Callable
    uncouple: Callable
    weights: tuple[int, ...]
    state: tuple[int, ...]


def run_step(step: Step, streams: list, weights: list, state: list) -> tuple[list, list, dict]:
    """Runs one step on its own values: `(streams, sides, updates)`."""
    fx, sides, updates = step.block(streams[1], weights, state)
    return step.couple(streams, fx), sides, updates


def run_steps(
    steps: Sequence[Step], streams: list, weights: list, state: list, run: Callable = run_step
) -> tuple[list, list, dict, list]:
    """Runs the steps in order, each on the state that those before it left.

    Returns:
        `(streams, sides, updates, seen)`: the last streams, the further outputs
        of each step, the new values of `state` by their position, and the state
        that each step found.
    """
    all_sides, all_updates, seen = [], {}, []
    for step in steps:
        found = [all_updates.get(i, state[i]) for i in step.state]
        mine = [weights[i] for i in step.weights]
        streams, sides, updates = run(step, streams, mine, found)
        all_sides.append(sides)
        all_updates.update({step.state[i]: value for i, value in updates.items()})
        seen.append(found)
    return streams, all_sides, all_updates, seen
