"""Reversible, converted and plain models give the same in ONNX's own runtime."""

import keras
import numpy as np
import pytest

import revkeras
from tests.convert.models import functional

onnxruntime = pytest.importorskip("onnxruntime", reason="installed for Python 3.11 and newer")

L = keras.layers


def reversible():
    def block():
        return keras.Sequential([L.LayerNormalization(), L.Dense(8, "relu"), L.Dense(4)])

    stack = revkeras.ReversibleSequential([block() for _ in range(3)])
    return keras.Sequential([keras.Input((8,), name="x"), stack, L.Dense(2)])


def converted():
    model = functional()
    return revkeras.to_momentum_net(model, beta=0.2) or model


@pytest.mark.tensorflow("JAX's exports to ONNX need a further package")
@pytest.mark.parametrize("build", [reversible, converted])
@pytest.mark.parametrize("plain", [False, True])
def test_exported(build, plain, tmp_path):
    model = build()
    model = revkeras.to_plain(model) if plain else model
    rng = np.random.default_rng(0)
    names = [x.name for x in model.inputs]
    data = {x.name: rng.random((3, x.shape[-1]), "float32") for x in model.inputs}
    expected = model(data if len(names) > 1 else data[names[0]])
    model.export(tmp_path / "model.onnx", format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert {x.name for x in session.get_inputs()} == set(names)
    (found,) = session.run(None, data)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
