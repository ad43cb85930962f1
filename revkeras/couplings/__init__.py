"""How a stream takes in a block's output, and how it gives it back."""

from revkeras.couplings.additive import Additive
from revkeras.couplings.affine import Affine
from revkeras.couplings.check import check_coupling
from revkeras.couplings.coupling import Coupling, rule_of
from revkeras.couplings.leapfrog import Leapfrog
from revkeras.couplings.momentum import Momentum
from revkeras.couplings.pair import Pair, from_functions
from revkeras.couplings.resolve import resolve

__all__ = [
    "Additive",
    "Affine",
    "Coupling",
    "Leapfrog",
    "Momentum",
    "Pair",
    "check_coupling",
    "from_functions",
    "resolve",
    "rule_of",
]
