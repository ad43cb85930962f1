"""`revkeras.memory` by its path: importing revkeras needs TensorFlow, and PyTorch's has none."""

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location(
    "memory", Path(__file__).parents[1] / "revkeras" / "memory.py"
)
memory = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(memory)
