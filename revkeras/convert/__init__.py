"""Existing models made reversible, and back."""

from revkeras.convert.momentum_model import to_momentum_net
from revkeras.convert.plain import to_plain
from revkeras.convert.sequential import to_reversible

__all__ = ["to_momentum_net", "to_plain", "to_reversible"]
