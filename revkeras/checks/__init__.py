"""How far the way back is from the way there."""

from revkeras.checks.gradient_drift import BlockDrift, GradientDrift, gradient_drift
from revkeras.checks.inverse_error import InverseError, check_inverse
from revkeras.checks.reconstruction_monitor import ReconstructionMonitor

__all__ = [
    "BlockDrift",
    "GradientDrift",
    "InverseError",
    "ReconstructionMonitor",
    "check_inverse",
    "gradient_drift",
]
