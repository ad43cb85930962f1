"""Reversible networks for Keras 3: activation memory that does not grow with depth."""

from revkeras import couplings
from revkeras.checkpoint import Checkpoint
from revkeras.reversible_sequential import ReversibleSequential

__version__ = "0.1.0"
__all__ = ["Checkpoint", "ReversibleSequential", "couplings"]
