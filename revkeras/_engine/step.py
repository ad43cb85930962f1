"""One step of a reversible stack, as pure functions of tensors."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from revkeras._engine.carry import Carry


@dataclasses.dataclass(frozen=True)
class Step:
    """A block, the coupling that takes its output in, and the way back.

    Attributes:
        name: What errors call it.
        source: `source(carry)`, a list: what the block is called on.
        block: `block(source, weights, state) -> (fx, sides, updates)`. `sides` are
            its further outputs: its losses and what it returns beside `fx`.
            `updates` has the new values of `state` by their position in it.
        couple: `couple(carry, fx)`, the carry after the step.
        recover: `recover(carry, weights, state)`, the source from the carry after
            the step; `None` where the carry before it is kept.
        uncouple: `uncouple(carry, fx, source)`, the carry before the step; as above.
        weights: The positions, in the stack's list, of the values that the
            block is differentiated by.
        state: The positions of its other values in the stack's list.
        packing: How the sides are to be read, once the step has run.
        structure: A hashable value that only steps share which trace to the same graph
            on tensors of the same shapes and dtypes, or `None` if only the graph can tell.
        owners: The variables, or tensors, whose values `weights` are.
        state_owners: Those whose values `state` is.
        pull_back: `pull_back(carry, fx, dcarry)`, the gradients of `couple` by its two
            arguments, where it is known without differentiating.
        exact: Whether the block must give the same bits when it is replayed.
        settles: Whether it is replayed on the state that it left, not the one
            that it found.
        compiled: Whether it is compiled by XLA.
        inference: Whether it is called with `training=False`.
    """

    name: str
    source: Callable
    block: Callable
    couple: Callable
    recover: Callable | None
    uncouple: Callable | None
    weights: tuple[int, ...]
    state: tuple[int, ...]
    packing: Any
    structure: Hashable | None = None
    owners: tuple = ()
    state_owners: tuple = ()
    pull_back: Callable | None = None
    exact: bool = False
    settles: bool = False
    compiled: bool = False
    inference: bool = False

    @property
    def traits(self) -> tuple[bool, ...]:
        """What, beside its structure, decides how its passes are traced."""
        return self.exact, self.settles, self.compiled, self.inference, self.recover is None

    @property
    def unproven(self) -> str | None:
        """The step's name, if it may not compute the same each time that it is traced.

        What Keras's own code computes is the same, and without a gradient nothing is replayed.
        """
        return None if self.structure or self.inference else self.name


def run_step(step: Step, carry: Carry, weights: list, state: list) -> tuple[Carry, list, dict]:
    """Runs one step on its own values: `(carry, sides, updates)`."""
    fx, sides, updates = step.block(step.source(carry), weights, state)
    return step.couple(carry, fx), sides, updates


def run_steps(
    steps: Sequence[Step], carry: Carry, weights: list, state: list, run: Callable
) -> tuple[Carry, list, dict, list]:
    """Runs the steps in order, each by `run` on the state that those before it left.

    Returns:
        `(carry, sides, updates, replayed)`: the last carry, the further outputs
        of each step, the new values of `state` by their position, and the state
        that each step is to be replayed on.
    """
    all_sides, all_updates, replayed = [], {}, []
    for step in steps:
        found = [all_updates.get(i, state[i]) for i in step.state]
        mine = [weights[i] for i in step.weights]
        carry, sides, updates = run(step, carry, mine, found)
        all_sides.append(sides)
        all_updates.update({step.state[i]: value for i, value in updates.items()})
        left = [updates.get(i, value) for i, value in enumerate(found)]
        replayed.append(left if step.settles else found)
    return carry, all_sides, all_updates, replayed
