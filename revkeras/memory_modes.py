"""How a stack's steps run, and what is kept of them for the gradient."""

from collections.abc import Callable, Sequence

from revkeras import backprop
from revkeras.step import Layout, Step, run_step, run_steps


def _checkpointed(
    steps: Sequence[Step], layout: Layout, inputs: list, weights: list, state: list
) -> tuple[list, list, dict]:
    """Runs the steps and keeps each one's input."""

    def run(step: Step, carry: list, weights: list, state: list) -> tuple[list, list, dict]:
        n = 0

        def function(carry: list, weights: list, state: list) -> tuple[list, dict]:
            nonlocal n
            carry, sides, updates = run_step(step, carry, weights, state)
            n = len(carry)
            return [*carry, *sides], updates

        outputs, updates = backprop.checkpoint(
            function, carry, weights, state, unproven=step.unproven
        )
        return outputs[:n], outputs[n:], updates

    return _plainly(steps, layout, inputs, weights, state, run)


def _plainly(
    steps: Sequence[Step],
    layout: Layout,
    inputs: list,
    weights: list,
    state: list,
    run: Callable = run_step,
) -> tuple[list, list, dict]:
    """Runs the steps, each by `run`, and leaves it to the backend what is kept."""
    carry, sides, updates, _ = run_steps(steps, layout.split(inputs), weights, state, run)
    return layout.join(carry), sides, updates


MEMORY_MODES = {"reversible": backprop.reversible, "checkpoint": _checkpointed, "none": _plainly}
