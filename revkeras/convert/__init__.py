"""Existing models made reversible, and back."""

from revkeras.convert.momentum_model import from_momentum_net, to_momentum_net
from revkeras.convert.plain import to_plain
from revkeras.convert.sequential import to_reversible

__all__ = ["from_momentum_net", "to_momentum_net", "to_plain", "to_reversible"]
