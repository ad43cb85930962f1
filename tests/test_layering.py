"""TensorFlow is imported where a backend's code belongs, and names are told apart."""

import ast
import collections
from pathlib import Path

import pytest

import revkeras

PACKAGE = Path(revkeras.__file__).parent
# Folders of code for one backend, and what else knows that code.
OWN = ("_engine/tensorflow/", "distribute/engines/", "distribute/tensorflow/")
DOORS = {
    "_keras.py": "keras.src.backend.tensorflow.trainer",
    "_engine/verbs.py": "revkeras._engine.tensorflow",
    "distribute/cluster.py": "revkeras.distribute.engines.tensorflow",
    "distribute/data_sharding.py": "revkeras.distribute.tensorflow.tf_dataset",
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


# What knows the private names of Keras and of TensorFlow, and why each is needed.
BORROWING = ("_keras.py", "_engine/jax/_borrowed.py", "_engine/tensorflow/_private.py")
# Documented in spite of their names: named tuples', `os`'s and `sys`'s.
DOCUMENTED = {"_replace", "_exit", "_current_frames"}
# The one module that imports Horovod.
OF_HOROVOD = {"_allreduce", "_reducescatter"}


def is_private(name):
    return name.startswith("_") and not name.endswith("__") and not name.startswith("_revkeras_")


def is_self(node):
    return ast.unparse(node) in ("self", "cls")


def private_names(tree, of_self=True):
    """The private attributes that code reads or sets, and the private modules that it imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            inside = node.attr == "src" or node.attr == "__internal__"
            if inside or (is_private(node.attr) and (of_self or not is_self(node.value))):
                yield ast.unparse(node) if inside else node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and is_private(name.value):
                yield name.value
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                modules = [f"{node.module}.{name}" for name in modules]
            yield from (x for x in modules if x.startswith(("keras.src", "tensorflow.python")))


def own_names(tree, inheriting=False):
    """The private attributes that classes define; with `inheriting`, those that have a base."""
    for scope in ast.walk(tree):
        if isinstance(scope, ast.ClassDef) and (scope.bases or not inheriting):
            for node in ast.walk(scope):
                if isinstance(node, ast.FunctionDef):
                    yield node.name
                elif isinstance(node, ast.AnnAssign):
                    yield ast.unparse(node.target).removeprefix("self.")
                elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    yield node.attr if is_self(node.value) else ""


def borrowed_names(sources):
    """By module, the private names that are another library's.

    Those are the names that no class here defines, and of those that the borrowing modules use
    all but an object's own, which a class with a base would override.
    """
    trees = {name: ast.parse(source) for name, source in sources.items()}
    known = {x for name in BORROWING if name in trees for x in private_names(trees[name])}
    others = {name: tree for name, tree in trees.items() if name not in BORROWING}
    own = DOCUMENTED.union(*map(own_names, others.values()))
    found = {
        name: ({*private_names(tree)} - own)
        | known.intersection(private_names(tree, of_self=False))
        | known.intersection(own_names(tree, inheriting=True))
        for name, tree in others.items()
    }
    return {name: names for name, names in found.items() if names}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("layer._flatten_layers()", {"_flatten_layers"}),
        ("self._trainable_variables", {"_trainable_variables"}),
        ("getattr(model, '_compile_config', None)", {"_compile_config"}),
        ("model._initial_epoch = 3", {"_initial_epoch"}),
        ("keras.src.backend.compute_output_spec(f)", {"keras.src"}),
        ("tf.__internal__.FuncGraph('f')", {"tf.__internal__"}),
        ("from keras.src.saving import saving_lib", {"keras.src.saving.saving_lib"}),
        ("def f():\n    import tensorflow.python.eager", {"tensorflow.python.eager"}),
        ("class A(Optimizer):\n    def _known(self): pass", {"_known"}),
        ("class A(Layer):\n    def __init__(self): self._known = 1", {"_known"}),
        ("class A:\n    def __init__(self): self._known = 1", set()),
        ("class A:\n    def __init__(self, b): self._known = b._known", {"_known"}),
        ("class A:\n    def _own(self, other): return other._own()", set()),
        ("class A:\n    def __init__(self, b): self._own = b._own", set()),
        ("carry._replace(streams=())", set()),
        ("y._revkeras_position = 3", set()),
    ],
)
def test_private_names_of_others_are_told_from_our_own(source, found):
    sources = {"_keras.py": "x._known", "a.py": source}
    assert borrowed_names(sources) == ({"a.py": found} if found else {})


def test_private_names_of_keras_and_tensorflow_stand_in_one_module_each():
    paths = {x.relative_to(PACKAGE).as_posix(): x for x in PACKAGE.rglob("*.py")}
    assert set(BORROWING) < set(paths)
    found = borrowed_names({name: path.read_text() for name, path in paths.items()})
    assert found == {"distribute/engines/horovod.py": OF_HOROVOD}


def test_module_and_class_names_are_unique():
    """But for `__init__` and `tensorflow`, which say what their folder is for."""
    modules = [path for path in PACKAGE.rglob("*.py") if path.stem != "__init__"]
    folders = [path for path in PACKAGE.rglob("*") if (path / "__init__.py").exists()]
    stems = collections.Counter(path.stem for path in {*modules, *folders})
    assert {stem for stem, n in stems.items() if n > 1} == {"tensorflow"}
    nodes = [node for path in modules for node in ast.walk(ast.parse(path.read_text()))]
    classes = [node.name.lstrip("_") for node in nodes if isinstance(node, ast.ClassDef)]
    assert not {name for name, n in collections.Counter(classes).items() if n > 1}
