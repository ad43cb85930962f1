"""Models made momentum networks: outputs, gradients, memory, arguments, files, the way back."""

import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import revkeras
from tests.convert.models import BUILDERS, DATA, X, assert_close, functional, gradients, subclassed
from tests.differentiation import COMPILED
from tests.modes import assert_same_training, fit

KINDS = list(BUILDERS)


def momentum(model, beta, data=X):
    """The recurrence of the paper, by the blocks of a model that was not converted."""
    x = model.first(data)
    v = np.zeros_like(x)
    for block in model.blocks:
        v = beta * v + (1 - beta) * (np.array(block(x)) - x)
        x = x + v
    return x


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_beta_keeps_the_outputs_and_all_else(kind):
    model = BUILDERS[kind]()
    expected, original = model(DATA[kind]), type(model)
    names = [v.path for v in model.variables]
    layers = [layer.name for layer in model._flatten_layers()]
    assert revkeras.to_momentum_net(model, beta=1e-6) is model
    assert [len(run.blocks) for run in model.momentum_runs] == [4]
    np.testing.assert_allclose(model(DATA[kind]), expected, atol=1e-5)
    assert isinstance(model, original)
    assert names == [v.path for v in model.variables]
    assert layers == [layer.name for layer in model._flatten_layers()]


@pytest.mark.parametrize(("blocks", "beta"), [(3, 0.1), (3, 0.9), (16, 0.1), (16, 0.5)])
def test_it_computes_the_recurrence(blocks, beta):
    """In floating point and, where that would lose too much, exactly."""
    model = subclassed(blocks)
    expected = momentum(model, beta)
    revkeras.to_momentum_net(model, beta=beta)
    exact = model.momentum_runs[0].stack.couplings[0].exact
    assert exact == (blocks == 16)
    np.testing.assert_allclose(model(X), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.8])
def test_gradients_are_those_of_plain_differentiation(kind, beta):
    model = BUILDERS[kind](5, rate=0.3, penalty=0.1)  # exact at 0.1
    revkeras.to_momentum_net(model, beta=beta)
    found = gradients(model, DATA[kind])
    for run in model.momentum_runs:
        run.memory_mode = "none"
    assert_close(found, gradients(model, DATA[kind]))
    assert found[1] or kind == "subclassed"  # the blocks' losses are the model's


@pytest.mark.parametrize("beta", [0.0, 1e-4])
def test_of_little_or_no_velocity_inputs_are_kept(beta):
    model = functional(6)
    expected = model(DATA["functional"])
    revkeras.to_momentum_net(model, beta=beta)
    np.testing.assert_allclose(model(DATA["functional"]), expected, atol=1e-3 if beta else 0)
    found = gradients(model, DATA["functional"])
    model.momentum_runs[0].memory_mode = "none"
    assert_close(found, gradients(model, DATA["functional"]))


def test_a_model_that_has_predicted_is_traced_anew():
    model = functional(4)
    before = model.predict(DATA["functional"], verbose=0)
    revkeras.to_momentum_net(model, beta=0.2)
    after = model.predict(DATA["functional"], verbose=0)
    assert np.abs(after - before).max() > 1e-2


def test_it_trains_as_in_mode_none_and_counts_what_saturates():
    def converted(mode):
        keras.utils.set_random_seed(0)
        model = functional(8, rate=0.2)
        revkeras.to_momentum_net(model, beta=0.2)
        model.momentum_runs[0].memory_mode = mode
        model.compile(keras.optimizers.SGD(0.1), "mse")
        return model

    model, y = converted("reversible"), np.ones((6, 3))
    found = fit(model, DATA["functional"], y, epochs=4)
    assert_same_training(found, fit(converted("none"), DATA["functional"], y, epochs=4))
    (saturated,) = (m for m in model.metrics if m.name.endswith("_saturated"))
    assert saturated.result() == 0
    assert model.jit_compile == COMPILED


def test_blocks_that_are_models_report_too_and_nothing_hides_what_is_not_finite():
    def block():
        x = keras.Input((4,))
        return keras.Model(x, x + keras.layers.Dense(4)(x))

    model = keras.Sequential([keras.Input((4,)), *(block() for _ in range(5))])
    revkeras.to_momentum_net(model)
    model.compile("sgd", "mse")
    large = np.full((2, 4), 1e5, "float32")
    history = model.fit(large, large, verbose=0).history
    (name,) = (n for n in history if n.endswith("_saturated"))
    assert history[name][0] > 0
    found = model.predict(np.array([[1.0] * 4, [np.nan] * 4, [np.inf] * 4]), verbose=0)
    np.testing.assert_array_equal(np.isfinite(found).all(axis=1), [True, False, False])
    revkeras.from_momentum_net(model)
    assert not any(n.name.endswith("_saturated") for n in model.metrics)


def test_a_subclassed_model_that_was_converted_back_is_converted_again():
    model = subclassed(3)
    expected = model(X)
    revkeras.to_momentum_net(model, beta=0.5)
    with pytest.raises(ValueError, match="momentum network already"):
        revkeras.to_momentum_net(model)
    converted = model(X)
    plain = revkeras.to_plain(model)
    np.testing.assert_allclose(plain(X), converted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model(X), converted)
    with pytest.raises(ValueError, match="Pass the model that was converted"):
        revkeras.from_momentum_net(plain)
    assert revkeras.from_momentum_net(model) is model
    for same in model, plain:
        np.testing.assert_array_equal(same(X), expected)
    revkeras.to_momentum_net(model, beta=0.0)
    np.testing.assert_array_equal(revkeras.from_momentum_net(model)(X), expected)


@pytest.mark.tensorflow("models that XLA is not to compile")
def test_a_model_compiled_before_leaves_xla_until_it_is_converted_back():
    model = functional(8)
    model.compile("adam", "mse", jit_compile=True)
    revkeras.to_momentum_net(model)
    assert not model.jit_compile
    revkeras.from_momentum_net(model)
    assert model.supports_jit
    assert model.jit_compile
    revkeras.to_momentum_net(model)
    model.compile("adam", "mse", jit_compile=False)
    revkeras.from_momentum_net(model)
    assert not model.jit_compile


def test_mixed_precision_keeps_the_streams_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = functional(8)
    expected = model(DATA["functional"])
    revkeras.to_momentum_net(model, beta=0.01)
    assert model.momentum_runs[0].dtype == "float32"
    found = model(DATA["functional"])
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(
        np.array(found, "float32"), np.array(expected, "float32"), atol=0.1, rtol=0.05
    )
    model.momentum_runs[0].memory_mode = "none"
    stepwise = model(DATA["functional"])
    np.testing.assert_allclose(
        np.array(found, "float32"), np.array(stepwise, "float32"), atol=0.02, rtol=0.02
    )


def test_mixed_precision_keeps_the_dtype_that_blocks_have():
    """Where the model adds to a float32 input, its output is float32."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    x = inputs = keras.Input((4,))
    for _ in range(4):
        x = x + keras.layers.Dense(4, activation="tanh")(x)
    model, data = keras.Model(inputs, x), 1000 + X
    expected = model(data)
    revkeras.to_momentum_net(model, beta=1e-6)
    assert model(data).dtype == expected.dtype == "float32"
    np.testing.assert_allclose(model(data), expected, atol=1e-2)


@pytest.mark.tensorflow("what a graph hands to its gradient")
def test_activation_memory_keeps_nothing_of_a_block():
    """Tensors that the graph of a step hands from its forward to its backward pass."""
    sizes = []
    for beta, mode in (0.5, "reversible"), (0.5, "none"):
        model = functional(10)
        revkeras.to_momentum_net(model, beta=beta)
        model.momentum_runs[0].memory_mode = mode
        x = {k: tf.constant(v) for k, v in DATA["functional"].items()}
        function = tf.function(lambda data, model=model: model(data, training=True))
        forward, _ = function.get_concrete_function(x)._delayed_rewrite_functions.forward_backward()
        shapes = [spec.shape for spec in forward.function_type.flat_outputs]
        # Scalars that stand for weights have no rank.
        sizes.append(sum(shape.rank is not None and tuple(shape) == X.shape for shape in shapes))
    assert sizes[0] < 8  # the run's output, and what goes with it
    assert sizes[1] > 30


def test_caches_go_block_by_block_with_the_velocity():
    model = subclassed()
    caches = [np.full((6, 4), i, "float32") for i in range(4)]
    zeros = [np.zeros((6, 4), "float32")] * 4
    plain, _ = model(X, caches=caches)
    revkeras.to_momentum_net(model, beta=0.4)
    x, after = model(X, caches=zeros)
    np.testing.assert_allclose(x, model(X), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(after, np.ones((4, 6, 4)))
    assert np.abs(model(X, caches=caches)[0] - plain).max() > 1e-2


def test_a_model_of_a_part_of_the_layers_computes_that_part():
    model = functional()
    inside = keras.Model(model.input, model.get_layer("block_1").output)
    revkeras.to_momentum_net(model, beta=0.3)
    first = model.get_layer("first")(X)
    x, v = first, np.zeros_like(first)
    found = inside(DATA["functional"])
    revkeras.from_momentum_net(model)
    for i in range(2):
        y = model.get_layer(f"block_{i}")(x, scale=DATA["functional"]["scale"])
        v = 0.3 * v + 0.7 * (np.array(y) - x)
        x = x + v
    np.testing.assert_allclose(found, x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_saved_loaded_and_converted_back(kind, beta, tmp_path):
    model = BUILDERS[kind](4)
    before = model(DATA[kind])
    revkeras.to_momentum_net(model, beta=beta)
    model.compile("adam", "mse")
    expected = model(DATA[kind])
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(loaded(DATA[kind]), expected, rtol=1e-5, atol=1e-6)
    assert [len(run.blocks) for run in loaded.momentum_runs] == [4]
    loaded.fit(DATA[kind], np.zeros_like(expected), verbose=0)
    loaded = keras.models.load_model(tmp_path / "m.keras")
    plain = revkeras.to_plain(loaded)
    np.testing.assert_allclose(plain(DATA[kind]), expected, rtol=1e-5, atol=1e-5)
    model.save_weights(tmp_path / "m.weights.h5")
    same = BUILDERS[kind](4)  # weights are those of the ordinary model
    same.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_allclose(same(DATA[kind]), before, rtol=1e-5, atol=1e-6)


def test_a_plain_functional_model_knows_nothing_of_revkeras(tmp_path):
    model = functional()
    revkeras.to_momentum_net(model, beta=0.2)
    expected = model(DATA["functional"])
    plain = revkeras.to_plain(model)
    assert type(plain) is type(keras.Model(model.input, model.output))
    plain.save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as file:
        assert b"revkeras" not in file.read("config.json")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(loaded(DATA["functional"]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["functional", "sequential", "inlined"])
def test_a_plain_model_is_compiled_and_converted_anew(kind):
    def own_loss(y, found):
        return keras.ops.mean(keras.ops.square(y - found))

    model = BUILDERS[kind](4)
    model.compile("adam", own_loss)
    expected = model(DATA[kind])
    revkeras.to_momentum_net(model, beta=0.2)
    plain = revkeras.to_plain(model)
    assert not plain.compiled
    plain.compile("adam", own_loss)
    plain.fit(DATA[kind], np.zeros_like(expected), epochs=0, verbose=0)
    np.testing.assert_allclose(revkeras.from_momentum_net(model)(DATA[kind]), expected, rtol=1e-6)
    again = revkeras.to_plain(revkeras.to_momentum_net(model, beta=0.2))
    np.testing.assert_allclose(again(DATA[kind]), plain(DATA[kind]), rtol=1e-6)
    with pytest.raises(ValueError, match="holds nothing that is reversible"):
        revkeras.to_plain(plain)


@pytest.mark.parametrize("kind", ["functional", "subclassed"])
def test_exported(kind, tmp_path):
    model = BUILDERS[kind](4)
    revkeras.to_momentum_net(model, beta=0.2)
    expected = model(DATA[kind])
    model.export(tmp_path / "converted", verbose=False)
    plain = revkeras.to_plain(model)
    plain.export(tmp_path / "plain", verbose=False)
    data = tf.nest.map_structure(tf.constant, DATA[kind])
    for name in "converted", "plain":
        loaded = tf.saved_model.load(tmp_path / name)
        np.testing.assert_allclose(loaded.serve(data), expected, rtol=1e-4, atol=1e-5)


def test_converted_inside_another_model(tmp_path):
    inner = functional(6)
    revkeras.to_momentum_net(inner, beta=0.2)
    inputs = {k: keras.Input(v.shape[1:], name=k) for k, v in DATA["functional"].items()}
    outer = keras.Model(inputs, keras.layers.Dense(2)(inner(inputs)))
    expected = outer(DATA["functional"])
    outer.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(loaded(DATA["functional"]), expected, rtol=1e-5, atol=1e-6)
    plain = revkeras.to_plain(outer)
    np.testing.assert_allclose(plain(DATA["functional"]), expected, rtol=1e-5, atol=1e-5)
