"""Reversible networks for Keras 3: activation memory that does not grow with depth."""

from revkeras import couplings, debugging, distribute, layers, models
from revkeras.checkpoint import Checkpoint
from revkeras.checks import ReconstructionMonitor, check_inverse, gradient_drift
from revkeras.convert import to_momentum_net, to_plain, to_reversible
from revkeras.fused_update import FusedUpdate
from revkeras.reversible_sequential import ReversibleSequential

__version__ = "0.1.0"
__all__ = [
    "Checkpoint",
    "FusedUpdate",
    "ReconstructionMonitor",
    "ReversibleSequential",
    "check_inverse",
    "couplings",
    "debugging",
    "distribute",
    "gradient_drift",
    "layers",
    "models",
    "to_momentum_net",
    "to_plain",
    "to_reversible",
]
