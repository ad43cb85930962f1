"""Classes that a file may name before the modules that define them are loaded.

Keras looks up a class by its registered name, and a class is registered when its module runs.
`import revkeras` does not run them all. Until a module runs, its names stand for stand-ins.
"""

import importlib
from typing import Any

import keras

_CLASSES = {
    "revkeras.convert.momentum_model": ("SavedMomentumModel",),
    "revkeras.convert.residual": ("Residual",),
    "revkeras.fused_update": ("FusedUpdate",),
    "revkeras.models.generation": ("GenerativeModel",),
    "revkeras.models.irevnet": ("InvertibleModel", "StreamsToDepth"),
    "revkeras.models.position": ("LearnedPositions",),
    "revkeras.models.token_embedding": ("TokenEmbedding",),
    "revkeras.models.transformer_blocks": (
        "AttentionBlock",
        "CrossAttentionBlock",
        "FeedForwardBlock",
    ),
}


class Unloaded:
    """Stands for a class, and loads it when Keras asks for one of its attributes."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(getattr(importlib.import_module(self._module), self._name), attribute)

    def __repr__(self) -> str:
        return f"<class '{self._module}.{self._name}'>"  # Keras shows it in errors


def register_unloaded() -> None:
    """Gives Keras the stand-ins; each module replaces its own when it runs."""
    registered = keras.saving.get_custom_objects()
    for module, names in _CLASSES.items():
        for name in names:
            registered[f"revkeras>{name}"] = Unloaded(module, name)
