"""From an argument to couplings."""

from typing import Any

from revkeras.couplings.additive import Additive
from revkeras.couplings.affine import Affine
from revkeras.couplings.coupling import Coupling
from revkeras.couplings.leapfrog import Leapfrog
from revkeras.couplings.momentum import Momentum
from revkeras.couplings.pair import from_functions

NAMES = {"additive": Additive, "affine": Affine, "leapfrog": Leapfrog, "momentum": Momentum}


def resolve(coupling: Any, forward: Any = None, inverse: Any = None) -> list[Coupling]:
    """The couplings that a layer's three arguments stand for."""
    if forward is not None or inverse is not None:
        if coupling is not None:
            raise ValueError(
                "Arguments `coupling` and `coupling_forward`, `coupling_inverse` exclude each "
                f"other: received coupling={coupling!r} beside functions."
            )
        return from_functions(forward, inverse)
    given = coupling if isinstance(coupling, (list, tuple)) else [coupling]
    if not given:
        raise ValueError(
            "Invalid value for argument `coupling`: expected a coupling or a list of them, "
            "received an empty list."
        )
    return [_one(c) for c in given]


def _one(coupling: Any) -> Coupling:
    if isinstance(coupling, Coupling):
        return coupling
    if coupling is None:
        return Additive()
    if isinstance(coupling, str) and coupling in NAMES:
        return NAMES[coupling]()
    hint = f" Did you mean `{coupling.__name__}()`?" if isinstance(coupling, type) else ""
    raise ValueError(
        f"Invalid value for argument `coupling`: expected one of {sorted(NAMES)}, an instance of "
        f"`revkeras.couplings.Coupling`, or a list of them; received {coupling!r}.{hint}"
    )
