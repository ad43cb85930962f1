"""The gradient engine on TensorFlow."""

from revkeras.backprop.tensorflow.checkpoint import checkpoint
from revkeras.backprop.tensorflow.graph import (
    are_initialized,
    compiles_by_default,
    eager_scope,
    require,
    snapshot,
)
from revkeras.backprop.tensorflow.reversible import reversible
from revkeras.backprop.tensorflow.tape import gradient_tape

__all__ = [
    "are_initialized",
    "checkpoint",
    "compiles_by_default",
    "eager_scope",
    "gradient_tape",
    "require",
    "reversible",
    "snapshot",
]
