"""Private names of JAX. Checked on JAX 0.10.

- `trace_state_clean`: whether any transformation is under way. Public names tell it of one value.
- `primal`, `parent`, `_trace.frame`: what a tracer was made of, and what reads it. Nothing public
  tells it before a trace is over.
"""

from typing import Any

import jax
from jax._src.core import trace_state_clean

__all__ = ["parent_of", "primal_of", "readers_of", "trace_state_clean"]


def primal_of(x: Any) -> Any:
    """The tracer of a function's trace, of one that is differentiated."""
    while isinstance(x, jax.core.Tracer) and hasattr(x, "primal"):
        x = x.primal
    return x


def parent_of(x: Any) -> tuple[str, Any] | None:
    """The primitive that a tracer comes from and its first argument, if it is known."""
    equation = getattr(x, "parent", None) if isinstance(x, jax.core.Tracer) else None
    if equation is None or not equation.in_tracers:
        return None
    return equation.primitive.name, equation.in_tracers[0]


def readers_of(x: Any) -> list[str]:
    """The primitives that have read a tracer so far; of arrays nobody knows."""
    x = primal_of(x)
    frame = getattr(getattr(x, "_trace", None), "frame", None)
    if frame is None:
        return []
    # Weak references, where a program drops what nothing reads.
    equations = [e if hasattr(e, "in_tracers") else e() for e in frame.tracing_eqns]
    return [
        e.primitive.name
        for e in equations
        if e is not None and any(getattr(y, "val", None) is x.val for y in e.in_tracers)
    ]
