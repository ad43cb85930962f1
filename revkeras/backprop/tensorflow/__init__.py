"""The gradient engine on TensorFlow."""

from revkeras.backprop.tensorflow.checkpoint import checkpoint
from revkeras.backprop.tensorflow.custom_gradient import with_gradient
from revkeras.backprop.tensorflow.graph import (
    after,
    are_initialized,
    compiles_by_default,
    eager_scope,
    is_eager,
    may_be_replayed,
    require,
    shared,
    snapshot,
)
from revkeras.backprop.tensorflow.layer_calls import is_read, is_same_tensor, layer_calls
from revkeras.backprop.tensorflow.replayable import refusing_merges
from revkeras.backprop.tensorflow.residence import is_on_host, place, residence
from revkeras.backprop.tensorflow.reversible import reversible
from revkeras.backprop.tensorflow.tape import gradient_tape
from revkeras.backprop.tensorflow.unread import read_late
from revkeras.backprop.tensorflow.updates import offer_update, take_updated

__all__ = [
    "after",
    "are_initialized",
    "checkpoint",
    "compiles_by_default",
    "eager_scope",
    "gradient_tape",
    "is_eager",
    "is_on_host",
    "is_read",
    "is_same_tensor",
    "layer_calls",
    "may_be_replayed",
    "offer_update",
    "place",
    "read_late",
    "refusing_merges",
    "require",
    "residence",
    "reversible",
    "shared",
    "snapshot",
    "take_updated",
    "with_gradient",
]
