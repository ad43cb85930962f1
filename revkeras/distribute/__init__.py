"""Training over many workers, each of which holds its part of the state (ZeRO)."""

from revkeras.distribute.strategy import ZeroStrategy

__all__ = ["ZeroStrategy"]
