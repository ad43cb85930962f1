"""`fit`, and all that stands around it, is the same in every memory mode."""

import keras
import numpy as np
import pytest

import revkeras
from tests import blocks

L = keras.layers


def data(n=24):
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, 8)).astype("float32"), np.arange(n) % 3


def model(mode, optimizer="adam", offload=None):
    keras.utils.set_random_seed(0)
    layers = [blocks.dropout(4), blocks.batch_norm(4), blocks.dense(4)]
    layers = [*layers, layers[0]]
    stack = revkeras.ReversibleSequential(layers, memory_mode=mode, offload=offload)
    found = keras.Sequential([keras.Input((8,)), stack, L.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    found.compile(optimizer, loss, metrics=["accuracy"])
    return found


def trained(found):
    """The losses, what the model predicts, and all its variables."""
    x, y = data()
    losses = found.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history["loss"]
    losses.append(found.evaluate(x, y, verbose=0)[0])
    losses.append(found.train_on_batch(x, y)[0])
    return losses, found.predict(x, verbose=0), [np.array(v) for v in found.variables]


def assert_close(found, expected):
    for a, b in zip(keras.tree.flatten(found), keras.tree.flatten(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["reversible", "checkpoint"])
def test_fit(mode):
    assert_close(trained(model(mode)), trained(model("none")))


def test_fused_update():
    fused = revkeras.FusedUpdate(keras.optimizers.Adam())
    *found, _ = trained(model("reversible", fused))
    *expected, _ = trained(model("none", keras.optimizers.Adam()))
    assert_close(found, expected)


def test_weights_on_the_host(tmp_path):
    fused = revkeras.FusedUpdate(keras.optimizers.Adam())
    first = model("reversible", fused, offload="host")
    *found, _ = trained(first)
    *expected, _ = trained(model("none", keras.optimizers.Adam()))
    assert_close(found, expected)
    first.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    x, y = data()
    assert_close(again.evaluate(x, y, verbose=0), first.evaluate(x, y, verbose=0))


def test_a_saved_model_is_the_same(tmp_path):
    first = model("reversible")
    trained(first)
    first.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    x, y = data()
    assert_close(again.evaluate(x, y, verbose=0), first.evaluate(x, y, verbose=0))


def test_checks_of_rounding():
    layer = revkeras.ReversibleSequential([L.Dense(4, activation="tanh") for _ in range(4)])
    x = data(4)[0]
    drift = revkeras.gradient_drift(layer, keras.ops.convert_to_tensor(x))
    assert drift.input_gradient_error < 1e-4
    assert all(block.input_error < 1e-4 for block in drift.blocks)
    assert revkeras.check_inverse(layer, (4, 8)).passed


def test_reconstruction_is_watched():
    found = model("reversible")
    x, y = data()
    monitor = revkeras.ReconstructionMonitor(x[:4])
    history = found.fit(x, y, epochs=1, verbose=0, callbacks=[monitor]).history
    assert 0 <= history["reconstruction_error"][0] < 1e-3


def test_a_value_that_is_not_finite_is_named():
    revkeras.debugging.enable_checks()
    try:
        found = model("reversible")
        x, y = data()
        x[0] = np.inf
        with pytest.raises(Exception, match="Block 0 .*left values that are not finite"):
            found.fit(x, y, epochs=1, verbose=0)
    finally:
        revkeras.debugging.disable_checks()


def test_a_variable_of_another_layer_is_refused():
    elsewhere = L.Dense(4)
    elsewhere.build((None, 4))
    hidden = [elsewhere]  # in a list of a closure, which Keras does not see

    class Borrowing(L.Layer):
        def call(self, x):
            return x @ hidden[0].kernel

    stack = revkeras.ReversibleSequential([Borrowing()])
    found = keras.Sequential([keras.Input((8,)), elsewhere_first(elsewhere), stack, L.Dense(3)])
    found.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="does not track as its own.*kernel"):
        found.fit(*data(), verbose=0)


def elsewhere_first(layer):
    """A layer that has `layer`, and passes on what it gets."""

    class Owner(L.Layer):
        def __init__(self):
            super().__init__()
            self.owned = layer

        def call(self, x):
            return x + 0 * keras.ops.sum(self.owned.kernel)

    return Owner()
