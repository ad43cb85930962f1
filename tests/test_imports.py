"""What `import revkeras` loads, what it loads later, and what it needs of a backend."""

import json
import os
import pkgutil
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest

import revkeras

L = keras.layers
ROOT = Path(__file__).parent.parent

# All that a stack, a checkpoint, couplings and layers consist of.
LOADED = {
    "_engine",
    "_keras",
    "_round_trip",
    "_stack",
    "_unloaded",
    "checkpoint",
    "couplings",
    "debugging",
    "layers",
}


def in_a_fresh_process(code, *arguments):
    """What the code prints as JSON in its last line."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        check=True,
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_names_that_are_loaded_on_use():
    code = """
        import importlib, json, keras, pkgutil, sys
        import revkeras

        def registered():
            objects = keras.saving.get_custom_objects()
            return {k: type(x).__name__ for k, x in objects.items() if k.startswith("revkeras>")}

        loaded = [m.split(".")[1] for m in sys.modules if m.startswith("revkeras.")]
        before, listed = registered(), dir(revkeras)
        from revkeras import *
        missing = [name for name in revkeras.__all__ if name not in globals()]
        modules = [revkeras.checks, revkeras.convert, revkeras.fused_update]
        for module in pkgutil.walk_packages(revkeras.__path__, "revkeras."):
            importlib.import_module(module.name)
        print(json.dumps([loaded, listed, missing, before, registered()]))
    """
    loaded, listed, missing, before, after = in_a_fresh_process(code)
    assert set(loaded) <= LOADED
    assert set(listed) > {*revkeras.__all__, "checks", "convert", "fused_update"}
    assert not missing
    assert before.keys() == after.keys()  # a file's names are known from the start
    assert "Unloaded" in before.values()
    assert "Unloaded" not in after.values()


def test_a_name_that_is_nowhere():
    assert pkgutil.resolve_name("revkeras:to_plain") is revkeras.to_plain
    with pytest.raises(AttributeError, match="module 'revkeras' has no attribute 'to_plane'"):
        revkeras.to_plane  # noqa: B018


def fused():
    stack = revkeras.ReversibleSequential([L.Dense(2) for _ in range(2)])
    model = keras.Sequential([keras.Input((4,)), stack])
    model.compile(revkeras.FusedUpdate("adam"), keras.losses.MeanSquaredError())
    return model, np.ones((2, 4), "float32")


def residual_block():
    x = keras.Input((4,))
    return keras.Model(x, x + L.Dense(4)(x))


def with_residual_blocks():
    stack = revkeras.to_reversible([residual_block() for _ in range(2)], residual=True)
    return keras.Sequential([keras.Input((4,)), stack]), np.ones((2, 4), "float32")


def momentum():
    x = inputs = keras.Input((4,))
    for _ in range(2):
        x = x + L.Dense(4, activation="tanh")(x)
    return revkeras.to_momentum_net(keras.Model(inputs, x)), np.ones((2, 4), "float32")


def transformer():
    tokens = np.ones((2, 5), "int32")
    sizes = {"hidden_dim": 8, "num_heads": 2, "max_length": 8}
    model = revkeras.models.ReversibleTransformer(20, decoder_layers=1, **sizes)
    return model, {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}


def irevnet():
    options = {"include_top": False, "input_shape": (8, 8, 3)}
    model = revkeras.models.IRevNet((1, 1), (1, 2), **options)
    return model, np.ones((2, 8, 8, 3), "float32")


def test_files_are_loaded_by_a_process_that_only_imports_revkeras(tmp_path):
    files = {"m.keras": [fused, with_residual_blocks, momentum, transformer, irevnet]}
    for file, builders in {**files, "m.h5": [fused]}.items():
        for build in builders:
            folder = tmp_path / f"{build.__name__} in {file}"
            folder.mkdir()
            model, data = build()
            model.save(folder / file)
            data = data if isinstance(data, dict) else {"x": data}
            outputs = model(data if len(data) > 1 else data["x"])
            np.savez(folder / "data.npz", expected=outputs, **data)
    code = """
        import json, keras, numpy as np, pathlib, sys
        import revkeras

        differences, optimizers = {}, []
        for path in pathlib.Path(sys.argv[1]).glob("*/m.*"):
            model = keras.models.load_model(path)
            data = dict(np.load(path.parent / "data.npz"))
            expected = data.pop("expected")
            found = model(data if len(data) > 1 else data["x"])
            differences[path.parent.name] = float(np.abs(found - expected).max())
            if path.parent.name.startswith("fused"):
                optimizers.append(type(model.optimizer) is revkeras.FusedUpdate)
        print(json.dumps([differences, optimizers]))
    """
    differences, optimizers = in_a_fresh_process(code, tmp_path)
    assert len(differences) == 6
    assert max(differences.values()) < 1e-5
    assert optimizers == [True, True]


def test_couplings_layers_and_models_need_no_engine():
    """Under another backend's name; its own package need not be installed here."""
    code = """
        import json, keras, numpy as np, sys
        keras.backend.backend = lambda: "numpy"
        import revkeras.couplings, revkeras.layers, revkeras.models

        rng = np.random.default_rng(0)
        *streams, fx = rng.standard_normal((3, 5, 4))
        errors = []
        for name in "Additive", "Leapfrog", "Momentum":
            coupling = getattr(revkeras.couplings, name)()
            back = coupling.uncouple(coupling.couple(streams, fx), fx)
            errors.append(float(np.abs(np.array(back) - np.array(streams)).max()))
        try:
            revkeras.ReversibleSequential([keras.layers.Dense(2)])
        except NotImplementedError as error:
            message = str(error)
        engine = [m for m in sys.modules if m.startswith("revkeras._engine.tensorflow")]
        print(json.dumps([errors, message, engine]))
    """
    errors, message, engine = in_a_fresh_process(code)
    assert max(errors) < 1e-12
    assert "TensorFlow, JAX and PyTorch backends" in message
    assert "received 'numpy'. Set KERAS_BACKEND=tensorflow" in message
    assert not engine
