"""Which way through its steps a stack takes."""

import contextlib
import contextvars
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from revkeras._engine import walk

MEMORY_MODES = {
    "reversible": walk.reversible,
    "checkpoint": walk.checkpointed,
    "none": walk.plain,
}

# How stacks run instead of in their own modes, in this thread.
_instead = contextvars.ContextVar("instead", default=types.MappingProxyType({}))


def check_memory_mode(memory_mode: Any) -> None:
    """Raises unless it is the name of a memory mode."""
    if not isinstance(memory_mode, str) or memory_mode not in MEMORY_MODES:
        raise ValueError(
            f"Invalid value for argument `memory_mode`: expected one of {list(MEMORY_MODES)}, "
            f"received memory_mode={memory_mode!r}."
        )


def way_of(stack: Any) -> Callable:
    """How a stack runs: a function as those of `revkeras._engine.walk`."""
    return _instead.get().get(stack, MEMORY_MODES[stack.memory_mode])


@contextlib.contextmanager
def running(ways: Mapping[Any, Callable]) -> Iterator[None]:
    """Inside, in this thread, these stacks run in other ways than their memory modes say."""
    token = _instead.set({**_instead.get(), **ways})
    try:
        yield
    finally:
        _instead.reset(token)
