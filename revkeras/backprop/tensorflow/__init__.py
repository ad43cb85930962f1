"""The gradient engine on TensorFlow."""

from revkeras.backprop.tensorflow.checkpoint import checkpoint
from revkeras.backprop.tensorflow.graph import (
    are_initialized,
    compiles_by_default,
    eager_scope,
    is_eager,
    require,
    snapshot,
)
from revkeras.backprop.tensorflow.layer_calls import is_same_tensor, layer_calls
from revkeras.backprop.tensorflow.offload import is_on_host, place
from revkeras.backprop.tensorflow.reversible import reversible
from revkeras.backprop.tensorflow.tape import gradient_tape
from revkeras.backprop.tensorflow.updates import offer_update, take_updated

__all__ = [
    "are_initialized",
    "checkpoint",
    "compiles_by_default",
    "eager_scope",
    "gradient_tape",
    "is_eager",
    "is_on_host",
    "is_same_tensor",
    "layer_calls",
    "offer_update",
    "place",
    "require",
    "reversible",
    "snapshot",
    "take_updated",
]
