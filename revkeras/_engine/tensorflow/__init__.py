"""The gradient engine on TensorFlow."""

from keras.metrics import Sum as call_metric

from revkeras._engine.tensorflow.custom_gradient import custom_vjp, with_gradient
from revkeras._engine.tensorflow.graph import (
    after,
    are_initialized,
    compiles_by_default,
    eager_scope,
    finite,
    has_float64,
    is_eager,
    joins_compile,
    may_be_replayed,
    replaying,
    require,
    shared,
    snapshot,
    unchanged_draws,
    vjp,
)
from revkeras._engine.tensorflow.graph_operations import (
    is_read,
    is_same_tensor,
    mark,
    operations_of,
)
from revkeras._engine.tensorflow.passes import passes_of
from revkeras._engine.tensorflow.replayable import refusing_merges
from revkeras._engine.tensorflow.residence import (
    keep_on_host,
    on_device,
    place,
    residence,
    slots_beside,
)
from revkeras._engine.tensorflow.unread import fetch, read_late
from revkeras._engine.tensorflow.updates import note_reads, offer_update, take_updated, use_up

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
    "shared",
    "slots_beside",
    "snapshot",
    "take_updated",
    "unchanged_draws",
    "use_up",
    "vjp",
    "with_gradient",
]
