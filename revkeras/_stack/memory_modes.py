"""How a stack's steps run, and what is kept of them for the gradient."""

import contextlib
import contextvars
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from revkeras._engine import verbs, walk
from revkeras._engine.carry import Carry, Layout
from revkeras._engine.step import Step, run_step, run_steps


def _checkpointed(
    steps: Sequence[Step], layout: Layout, inputs: Carry, weights: list, state: list
) -> tuple[Carry, list, dict]:
    """Runs the steps and keeps each one's input."""

    def run(step: Step, carry: Carry, weights: list, state: list) -> tuple[Carry, list, dict]:
        def function(carry: Carry, weights: list, state: list) -> tuple[tuple, dict]:
            carry, sides, updates = run_step(step, carry, weights, state)
            return (carry, sides), updates

        (carry, sides), updates = verbs.checkpoint(
            function, carry, weights, state, unproven=step.unproven
        )
        return carry, sides, updates

    return _plainly(steps, layout, inputs, weights, state, run)


def _plainly(
    steps: Sequence[Step],
    layout: Layout,
    inputs: Carry,
    weights: list,
    state: list,
    run: Callable = run_step,
) -> tuple[Carry, list, dict]:
    """Runs the steps, each by `run`, and leaves it to the backend what is kept."""
    carry, sides, updates, _ = run_steps(steps, layout.unpack(inputs), weights, state, run)
    return layout.pack(carry), sides, updates


MEMORY_MODES = {"reversible": walk.reversible, "checkpoint": _checkpointed, "none": _plainly}

# What stacks run in instead of their own modes, in this thread.
_instead = contextvars.ContextVar("instead", default=types.MappingProxyType({}))


def check_memory_mode(memory_mode: Any) -> None:
    """Raises unless it is the name of a memory mode."""
    if not isinstance(memory_mode, str) or memory_mode not in MEMORY_MODES:
        raise ValueError(
            f"Invalid value for argument `memory_mode`: expected one of {list(MEMORY_MODES)}, "
            f"received memory_mode={memory_mode!r}."
        )


def mode_of(stack: Any) -> str | Callable:
    """The memory mode that a stack runs in, or a function as those in `MEMORY_MODES`."""
    return _instead.get().get(stack, stack.memory_mode)


@contextlib.contextmanager
def run_in(modes: Mapping[Any, str | Callable]) -> Iterator[None]:
    """Inside, in this thread, these stacks run in other modes than their own."""
    token = _instead.set({**_instead.get(), **modes})
    try:
        yield
    finally:
        _instead.reset(token)
