"""The gradient engine on TensorFlow."""

from revkeras.backprop.tensorflow.checkpoint import checkpoint
from revkeras.backprop.tensorflow.graph import eager_scope, require, snapshot
from revkeras.backprop.tensorflow.reversible import reversible

__all__ = ["checkpoint", "eager_scope", "require", "reversible", "snapshot"]
