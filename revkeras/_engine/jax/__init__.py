"""The gradient engine on JAX."""

from revkeras._engine.in_place import fetch
from revkeras._engine.jax.assertions import finite, require
from revkeras._engine.jax.autodiff import custom_vjp, vjp
from revkeras._engine.jax.call_metrics import CarriedSum as call_metric
from revkeras._engine.jax.called import after, passes_of
from revkeras._engine.jax.equations import is_read, is_same_tensor, mark, operations_of
from revkeras._engine.jax.memory_kinds import (
    keep_on_host,
    on_device,
    place,
    residence,
    slots_beside,
)
from revkeras._engine.jax.traces import (
    are_initialized,
    compiles_by_default,
    eager_scope,
    has_float64,
    is_eager,
    joins_compile,
    may_be_replayed,
    read_late,
    refusing_merges,
    replaying,
    snapshot,
    unchanged_draws,
)
from revkeras._engine.whole_steps import note_reads, offer_update, take_updated, use_up

__all__ = [
    "after",
    "are_initialized",
    "call_metric",
    "compiles_by_default",
    "custom_vjp",
    "eager_scope",
    "fetch",
    "finite",
    "has_float64",
    "is_eager",
    "is_read",
    "is_same_tensor",
    "joins_compile",
    "keep_on_host",
    "mark",
    "may_be_replayed",
    "note_reads",
    "offer_update",
    "on_device",
    "operations_of",
    "passes_of",
    "place",
    "read_late",
    "refusing_merges",
    "replaying",
    "require",
    "residence",
    "slots_beside",
    "snapshot",
    "take_updated",
    "unchanged_draws",
    "use_up",
    "vjp",
]
