"""TensorFlow is imported where a backend's code belongs, and nowhere else."""

import ast
from pathlib import Path

import pytest

import revkeras

PACKAGE = Path(revkeras.__file__).parent
# Folders of code for one backend, and what else knows that code.
OWN = ("_engine/tensorflow/", "distribute/engines/", "distribute/tensorflow/")
DOORS = {
    "_engine/verbs.py": "revkeras._engine.tensorflow",
    "distribute/cluster.py": "revkeras.distribute.engines.tensorflow",
    "distribute/dataset.py": "revkeras.distribute.tensorflow.dataset",
    "distribute/resume.py": "revkeras.distribute.tensorflow.replay",
}


def names_tensorflow(source):
    """The modules that code imports, anywhere in it, which have `tensorflow` in their path."""
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            in_path = "tensorflow" in module.split(".")
            names = [f"{module}.{alias.name}" for alias in node.names]
            imported |= {module} if in_path else set(names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            imported |= {x.value for x in node.args if isinstance(x, ast.Constant)}
    return {name for name in imported if "tensorflow" in name.split(".")}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import tensorflow as tf", {"tensorflow"}),
        ("def f():\n    from tensorflow.python.eager import context", {"tensorflow.python.eager"}),
        ("from keras.src.backend import tensorflow", {"keras.src.backend.tensorflow"}),
        ("import importlib\nimportlib.import_module('tensorflow')", {"tensorflow"}),
        ("from . import tensorflow", {"..tensorflow"}),
        ("import keras\nfrom revkeras._engine import verbs", set()),
    ],
)
def test_imports_are_found_wherever_they_stand(source, found):
    assert names_tensorflow(source) == found


def test_only_a_backends_own_code_imports_it():
    paths = {x.relative_to(PACKAGE).as_posix(): x for x in PACKAGE.rglob("*.py")}
    others = {name: path for name, path in paths.items() if not name.startswith(OWN)}
    found = {name: names_tensorflow(path.read_text()) for name, path in others.items()}
    assert {name: modules for name, modules in found.items() if modules} == {
        name: {module} for name, module in DOORS.items()
    }
