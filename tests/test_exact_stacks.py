"""Stacks with exact couplings, in models."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import revkeras
from revkeras import ReversibleSequential
from revkeras.couplings import Additive, Momentum
from tests.compiling import compiled
from tests.differentiation import FAILED_CHECK, gradients, in_graph
from tests.modes import assert_modes_agree, assert_same_training, fit

L = keras.layers


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


def blocks(channels, n=3):
    return [
        keras.Sequential([L.Dense(channels, activation="tanh"), L.Dropout(0.2)]) for _ in range(n)
    ]


EXACT = {"additive": Additive(exact=True), "momentum": Momentum(0.7, exact=True)}


@pytest.mark.parametrize("split_axis", [-1, None])
@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("coupling", EXACT)
def test_modes_agree(coupling, graph, split_axis):
    layer = ReversibleSequential(
        blocks(8 if split_axis is None else 4), coupling=EXACT[coupling], split_axis=split_axis
    )
    assert_modes_agree(layer, normal(3, 8), graph=graph, training=True, tolerance=1e-6)


def test_deeper_than_one_buffer():
    coupling = Momentum(0.5, exact=True)
    layer = ReversibleSequential(
        [L.Dense(4, activation="tanh") for _ in range(60)], coupling=coupling, split_axis=None
    )
    assert_modes_agree(layer, normal(2, 4), graph=False, tolerance=1e-6)


@pytest.mark.parametrize("coupling", EXACT)
def test_trains_as_mode_none_and_reports_saturation(coupling, tmp_path):
    def model_in(mode):
        keras.utils.set_random_seed(0)
        stack = ReversibleSequential(blocks(4), coupling=EXACT[coupling], memory_mode=mode)
        model = keras.Sequential([keras.Input((8,)), stack, L.Dense(1)])
        return compiled(model, keras.optimizers.SGD(0.1))

    x, y = normal(64, 8), normal(64, 1)
    model = model_in("reversible")
    found = fit(model, x, y, epochs=2)
    assert_same_training(found, fit(model_in("none"), x, y, epochs=2))
    stack = model.layers[0]
    assert stack.saturated.result() == 0
    history = model.fit(x[:32] * 1e9, y[:32], verbose=0).history
    assert history[f"{stack.name}_saturated"][0] > 0
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded(x), model(x))
    assert loaded.layers[0].couplings[0].exact


@pytest.mark.tensorflow("SavedModel")
def test_saved_model_differentiates(tmp_path):
    stack = ReversibleSequential(blocks(4, 2), coupling=EXACT["momentum"])
    model = keras.Sequential([keras.Input((8,)), stack])
    model.export(tmp_path / "m", verbose=False)
    loaded, x = tf.saved_model.load(tmp_path / "m"), tf.constant(normal(2, 8))
    gradients = []
    for call in loaded.serve, model:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(call(x) ** 2)
        gradients.append(tape.gradient(y, x))
    np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-6)


def test_learned_initial_velocity():
    coupling = Momentum(0.5, initial_velocity="learned")
    layer = ReversibleSequential(
        [L.Dense(4, activation="tanh") for _ in range(3)], coupling=coupling, split_axis=None
    )
    x = normal(2, 4)
    layer(x)
    (start,) = [v for v in layer.trainable_variables if v.name == "start"]
    assert start.shape == (4,)
    start.assign([0.1, -0.2, 0.3, 1.0])
    v, y = np.broadcast_to(np.array(start), x.shape), x
    for f in layer.layers:
        v = 0.5 * v + 0.5 * np.array(f(y))
        y = y + v
    np.testing.assert_allclose(layer(x), y, rtol=1e-5, atol=1e-6)
    assert_modes_agree(layer, x)


@pytest.fixture
def _checks():
    revkeras.debugging.enable_checks()
    yield
    revkeras.debugging.disable_checks()


@pytest.mark.usefixtures("_checks")
@pytest.mark.parametrize("graph", [True, False])
def test_debugging_stops_at_saturation(graph):
    layers = [L.Rescaling(1.0), L.Rescaling(1e7), L.Rescaling(1.0)]
    layer = ReversibleSequential(layers, coupling=Additive(exact=True))
    call = in_graph(layer, layer.variables) if graph else layer
    with pytest.raises(FAILED_CHECK, match="Block 1.*beyond the range"):
        call(normal(2, 8) + 10)


@pytest.mark.usefixtures("_checks")
@pytest.mark.parametrize("graph", [True, False])
def test_debugging_stops_at_what_is_not_finite(graph):
    layers = [L.Rescaling(1.0), L.Rescaling(1e38), L.Rescaling(1.0)]
    layer = ReversibleSequential(layers)
    call = in_graph(layer, layer.variables) if graph else layer
    with pytest.raises(FAILED_CHECK, match="Block 1.*left values.*not finite"):
        call(normal(2, 8) + 10)


@keras.saving.register_keras_serializable("tests")
class Shrinking(revkeras.couplings.Coupling):
    def forward(self, x, fx):
        return x * 1e-30 + fx

    def inverse(self, y, fx):
        return (y - fx) / 1e-30 / 1e-30


@pytest.mark.usefixtures("_checks")
def test_debugging_stops_at_what_is_rebuilt_wrong():
    layer = ReversibleSequential([L.Rescaling(1.0)] * 3, coupling=Shrinking(), check_inverse=False)
    with pytest.raises(FAILED_CHECK, match="The input of Block.*not finite"):
        gradients(layer, [normal(2, 8)])


@pytest.mark.usefixtures("_checks")
def test_debugging_stops_at_inputs_beyond_the_range():
    layer = ReversibleSequential([L.Rescaling(1.0)], coupling=Additive(exact=True))
    with pytest.raises(FAILED_CHECK, match="input of a stack is beyond"):
        layer(normal(2, 8) * 1e7)


def test_two_stacks_report_apart():
    model = keras.Sequential(
        [
            keras.Input((8,)),
            ReversibleSequential(blocks(4, 2), coupling=Additive(exact=True)),
            L.Dense(8, activation="tanh"),
            ReversibleSequential(blocks(4, 2), coupling=Additive(exact=True)),
        ]
    )
    compiled(model, "sgd")
    x = normal(8, 8)
    history = model.fit(x * 1e9, x, verbose=0).history
    first, second = (history[f"{model.layers[i].name}_saturated"][0] for i in (0, 2))
    assert first > 0
    assert second == 0


@pytest.mark.parametrize("coupling", EXACT)
def test_log_det(coupling):
    layer = ReversibleSequential(blocks(4, 3), coupling=EXACT[coupling])
    y, log_det = layer(normal(2, 8), return_log_det=True)
    expected = {"additive": 0, "momentum": 3 * 4 * np.log(0.7)}[coupling]
    np.testing.assert_allclose(log_det, [expected] * 2, rtol=1e-6)
    assert_modes_agree(layer, normal(2, 8), return_log_det=True)


def test_inverse_in_the_whole_range():
    layer = ReversibleSequential([L.Rescaling(0.0, offset=1e5)], coupling=Additive(exact=True))
    x = np.full((1, 2), 5e5, "float32")
    y = layer(x)
    assert float(layer.saturated.result()) == 0
    np.testing.assert_array_equal(layer.inverse(y), x)
