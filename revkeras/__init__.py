"""Reversible networks for Keras 3: activation memory that does not grow with depth."""

import importlib
from typing import TYPE_CHECKING, Any

from revkeras import couplings, debugging, layers
from revkeras._stack.reversible_sequential import ReversibleSequential
from revkeras._unloaded import register_unloaded
from revkeras.checkpoint import Checkpoint

if TYPE_CHECKING:
    from revkeras import distribute, models
    from revkeras.checks import ReconstructionMonitor, check_inverse, gradient_drift
    from revkeras.convert import from_momentum_net, to_momentum_net, to_plain, to_reversible
    from revkeras.fused_update import FusedUpdate

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
    "from_momentum_net",
    "gradient_drift",
    "layers",
    "models",
    "to_momentum_net",
    "to_plain",
    "to_reversible",
]

# Loaded on first use: what each module has for this namespace.
_ON_USE = {
    "checks": ("ReconstructionMonitor", "check_inverse", "gradient_drift"),
    "convert": ("from_momentum_net", "to_momentum_net", "to_plain", "to_reversible"),
    "distribute": (),
    "fused_update": ("FusedUpdate",),
    "models": (),
}


def __getattr__(name: str) -> Any:
    for module, names in _ON_USE.items():
        if name == module:
            return importlib.import_module(f"revkeras.{module}")
        if name in names:
            globals()[name] = getattr(importlib.import_module(f"revkeras.{module}"), name)
            return globals()[name]
    raise AttributeError(f"module 'revkeras' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ON_USE})


register_unloaded()
