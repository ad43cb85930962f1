"""ReversibleSequential as an ordinary Keras layer, with all that its blocks may contain."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src import testing

import revkeras
from tests import blocks
from tests.compiling import compiled
from tests.modes import assert_modes_agree, assert_same_training, fit, in_mode, run_step

pytestmark = pytest.mark.tensorflow("tapes, functions and variables of TensorFlow")

L = keras.layers
MODES = ["reversible", "checkpoint", "none"]


def normal(*shape, dtype="float32"):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


@keras.saving.register_keras_serializable("tests")
class CrossAttention(L.Layer):
    """Reads a context, an additive bias and a flag that is no tensor."""

    def __init__(self, channels, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.attention = L.MultiHeadAttention(1, channels)
        self.dense = L.Dense(channels)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x, context, bias=None, attention_mask=None, double=False):
        y = self.attention(x, context, attention_mask=attention_mask)
        y = self.dense(y) + (0 if bias is None else bias)
        return 2 * y if double else y

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}


@keras.saving.register_keras_serializable("tests")
class Returning(L.Layer):
    """Returns more than its update."""

    def __init__(self, channels, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.dense = L.Dense(channels)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        y = self.dense(x)
        largest = keras.ops.argmax(y, axis=-1)
        return keras.ops.tanh(y), y[:, :1] ** 2, {"largest": largest}

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}


@keras.saving.register_keras_serializable("tests")
class OuterTraining(L.Layer):
    """Takes no `training`, holds a layer that does."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dropout = L.Dropout(0.5)

    def call(self, x):
        return self.dropout(x) * 2


@keras.saving.register_keras_serializable("tests")
class AddsLoss(L.Layer):
    def call(self, x):
        self.add_loss(keras.ops.mean(x**2))
        return keras.ops.sin(x)


@keras.saving.register_keras_serializable("tests")
class Ignores(L.Layer):
    def build(self, shape):
        self.used = self.add_weight(shape=(shape[-1],), initializer="ones")
        self.unused = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.used


class Conformance(testing.TestCase):
    """Keras's own check of layers."""

    def test_dense(self):
        self.run_layer_test(
            revkeras.ReversibleSequential,
            init_kwargs={"layers": [L.Dense(4), L.Dense(4)]},
            input_shape=(2, 8),
            expected_output_shape=(2, 8),
            expected_num_trainable_weights=4,
            expected_num_seed_generators=0,
            supports_masking=True,
        )

    def test_convolution(self):
        self.run_layer_test(
            revkeras.ReversibleSequential,
            init_kwargs={
                "layers": [blocks.convolution(3), blocks.convolution(3)],
                "split_axis": -1,
                "memory_mode": "checkpoint",
            },
            input_shape=(2, 4, 4, 6),
            expected_output_shape=(2, 4, 4, 6),
            expected_num_seed_generators=2,
        )

    def test_pair_of_streams(self):
        self.run_layer_test(
            revkeras.ReversibleSequential,
            init_kwargs={"layers": [L.Dense(4, activity_regularizer="l2"), L.Dropout(0.5)]},
            input_shape=((2, 4), (2, 4)),
            expected_output_shape=((2, 4), (2, 4)),
            expected_num_losses=1,
        )

    def test_whole_input_in_both_streams(self):
        self.run_layer_test(
            revkeras.ReversibleSequential,
            init_kwargs={"layers": [blocks.batch_norm(5)], "split_axis": None},
            input_shape=(3, 5),
            expected_output_shape=(3, 5),
        )


def test_equation():
    f, g = L.Dense(2, activation="tanh"), L.Dense(2, activation="relu")
    layer = revkeras.ReversibleSequential(
        [f, g], lambda x, fx: x * 0.5 + fx, lambda y, fx: (y - fx) * 2
    )
    x = normal(3, 4)
    y = layer(x)
    x0, x1 = x[:, :2], x[:, 2:]
    first = x0 * 0.5 + f(x1)
    second = x1 * 0.5 + g(first)
    np.testing.assert_allclose(y, np.concatenate([first, second], -1), rtol=1e-6)


@pytest.mark.parametrize("axis", [1, 2, -1, -2])
def test_split_axis(axis):
    shape = [4, 6]
    shape[axis - 1 if axis > 0 else axis] //= 2
    layer = revkeras.ReversibleSequential(
        [L.Dense(shape[-1], activation="tanh") for _ in range(2)], split_axis=axis
    )
    assert layer(normal(2, 4, 6)).shape == (2, 4, 6)
    assert_modes_agree(layer, normal(2, 4, 6))


def test_two_streams_and_their_mean():
    layer = revkeras.ReversibleSequential([blocks.dense(4) for _ in range(3)])
    assert_modes_agree(layer, normal(2, 4), normal(2, 4) + 1)
    whole = revkeras.ReversibleSequential([blocks.dense(4) for _ in range(3)], split_axis=None)
    x = normal(2, 4)
    y = whole(x)
    pair = revkeras.ReversibleSequential(whole.layers)
    np.testing.assert_allclose(y, sum(pair([x, x])) / 2, rtol=1e-6)
    assert isinstance(pair((x, x)), tuple)
    assert_modes_agree(whole, x)


@pytest.mark.parametrize("graph", [False, True])
def test_arguments_reach_the_blocks(graph):
    layer = revkeras.ReversibleSequential(
        [CrossAttention(4), L.Dense(4, activation="tanh"), CrossAttention(4)]
    )
    arguments = {
        "context": tf.constant(normal(2, 5, 3)),
        "bias": tf.constant(normal(4)),
        "attention_mask": tf.constant(normal(2, 3, 5) > 0),
        "double": True,
    }
    assert_modes_agree(layer, normal(2, 3, 8), graph=graph, **arguments)


@pytest.mark.parametrize("mode", ["reversible", "checkpoint", "none"])
@pytest.mark.parametrize("graph", [False, True])
def test_a_tensorflow_variable_as_an_argument(graph, mode):
    class Scaled(keras.layers.Layer):
        def call(self, x, scale):
            return x * scale

    scale, x = tf.Variable(0.5), tf.constant(normal(2, 4))
    stack = revkeras.ReversibleSequential([Scaled()] * 2, split_axis=None, memory_mode=mode)

    def gradient():
        with tf.GradientTape() as tape:
            y = stack(x, scale=scale)
        return tape.gradient(y, scale)

    found = (tf.function(gradient) if graph else gradient)()
    # The output is the mean of the streams x (1 + s) and x (1 + s + s**2).
    np.testing.assert_allclose(found, tf.reduce_sum(x) * 1.5, rtol=1e-5)


def test_arguments_in_a_functional_model(tmp_path):
    x, context = keras.Input((3, 8)), keras.Input((5, 3))
    blocks_ = [L.Dense(4), CrossAttention(4)]
    y = revkeras.ReversibleSequential(blocks_, name="stack")(x, context=context, double=True)
    model = keras.Model([x, context], y)
    model.compile("sgd", "mse")
    inputs = [normal(2, 3, 8), normal(2, 5, 3)]
    model.fit(inputs, normal(2, 3, 8), verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(loaded.predict(inputs, verbose=0), model.predict(inputs, verbose=0))


@pytest.mark.parametrize("graph", [False, True])
def test_mask_reaches_the_blocks(graph):
    inner = [blocks.attention(4) for _ in range(2)]
    stack = revkeras.ReversibleSequential(inner)
    mask = tf.constant([[True, True, False], [True, False, False]])
    assert_modes_agree(stack, normal(2, 3, 8), mask=mask, graph=graph)
    x = tf.constant(normal(2, 3, 8))
    assert np.max(np.abs(stack(x, mask=mask) - stack(x))) > 1e-3
    model = keras.Sequential([L.Embedding(9, 8, mask_zero=True), stack])
    tokens = np.array([[1, 2, 0], [3, 0, 0]])
    np.testing.assert_allclose(
        model(tokens), stack(model.layers[0](tokens) + 0, mask=mask), rtol=1e-5, atol=1e-6
    )
    assert model(tokens)._keras_mask is not None


@pytest.mark.parametrize("graph", [False, True])
def test_further_outputs_come_back(graph):
    layer = revkeras.ReversibleSequential([Returning(4), L.Dense(4), Returning(4)])
    y, square, index, *more = layer(normal(2, 8))
    assert y.shape == (2, 8)
    assert square.shape == (2, 1)
    assert index["largest"].dtype == tf.int64 or index["largest"].dtype == tf.int32
    assert len(more) == 2
    assert_modes_agree(layer, normal(2, 8), graph=graph)
    inputs = keras.Input((8,))
    outputs = revkeras.ReversibleSequential([Returning(4)])(inputs)
    assert [tuple(t.shape) for t in keras.tree.flatten(outputs)] == [(None, 8), (None, 1), (None,)]
    keras.Model(inputs, outputs[0]).predict(normal(2, 8), verbose=0)


@pytest.mark.parametrize("graph", [False, True])
def test_training_reaches_inner_layers(graph):
    layer = revkeras.ReversibleSequential([OuterTraining(), OuterTraining()])
    x = normal(4, 8)
    assert_modes_agree(layer, x, training=True, graph=graph)
    assert_modes_agree(layer, x, training=False, graph=graph)
    assert np.any(layer(x, training=True) != layer(x, training=True))
    np.testing.assert_array_equal(layer(x, training=False), layer(x))


@pytest.mark.parametrize("mode", MODES)
def test_seeds_and_statistics_move_once_a_step(mode):
    norm, dropout = L.BatchNormalization(momentum=0.5), L.Dropout(0.5, seed=3)
    layer = revkeras.ReversibleSequential([norm, dropout], memory_mode=mode)
    model = compiled(keras.Sequential([keras.Input((4,)), layer]), "sgd")
    x = normal(8, 4) + 3
    before = dropout.seed_generator.state.numpy().copy()
    model.train_on_batch(x, x)
    np.testing.assert_allclose(norm.moving_mean, 0.5 * x[:, 2:].mean(0), rtol=1e-5)
    once = keras.layers.Dropout(0.5, seed=3)
    once(x, training=True)
    moved = dropout.seed_generator.state.numpy()
    assert np.any(moved != before)
    np.testing.assert_array_equal(moved, once.seed_generator.state.numpy())


def test_shared_blocks_add_up():
    shared = blocks.convolution(2)
    layer = revkeras.ReversibleSequential([shared, L.Conv2D(2, 1), shared, shared])
    assert_modes_agree(layer, normal(2, 4, 4, 4), training=True)
    assert len(layer.trainable_variables) == 6


@pytest.mark.parametrize("mode", ["reversible", "checkpoint"])
@pytest.mark.parametrize("graph", [False, True])
def test_losses_count_once(mode, graph):
    layer = revkeras.ReversibleSequential(
        [AddsLoss(), blocks.regularized(4), AddsLoss()], memory_mode=mode
    )
    x = normal(2, 8)
    layer(x)
    assert len(layer.losses) == 4
    expected = run_step(in_mode(layer, "none"), x, graph=graph)
    found = run_step(layer, x, graph=graph)
    assert sum(found.losses) == pytest.approx(sum(expected.losses), rel=1e-6)
    for a, b in zip(found.weight_gradients, expected.weight_gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("what", ["whole", "block", "layer"])
def test_frozen(what):
    stack = [blocks.convolution(2) for _ in range(3)]
    layer = revkeras.ReversibleSequential(stack)
    x = normal(2, 4, 4, 4)
    layer(x)
    target = {"whole": layer, "block": stack[1], "layer": stack[1].layers[0]}[what]
    target.trainable = False
    count = {"whole": 0, "block": 8, "layer": 10}[what]
    assert len(layer.trainable_variables) == count
    assert_modes_agree(layer, x, training=True)


def test_frozen_blocks_cost_no_weight_gradients():
    stack = [L.Dense(4) for _ in range(2)]
    layer = revkeras.ReversibleSequential(stack)
    x = tf.constant(normal(2, 8))
    layer(x)
    layer.trainable = False

    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(layer(x))
        return tape.gradient(y, x)

    graph = gradient.get_concrete_function(x).graph.as_graph_def()
    names = [n.op for f in graph.library.function for n in f.node_def]
    products = names.count("MatMul")
    assert products == 3  # the blocks share: one forward, one forward again, one for dx


def test_nested():
    inner = revkeras.ReversibleSequential([blocks.dropout(2) for _ in range(2)])
    layer = revkeras.ReversibleSequential([inner, blocks.batch_norm(4)])
    assert_modes_agree(layer, normal(6, 8), training=True)
    assert_modes_agree(layer, normal(6, 8), training=True, graph=False)


@functools.cache
def trained_by_fit(mode, run_eagerly):
    """The losses, the outputs and the variables at the end."""
    x, y = normal(24, 8, 8, 3), np.arange(24) % 5
    keras.utils.set_random_seed(1)
    stack = revkeras.ReversibleSequential(
        [blocks.convolution(4) for _ in range(3)], memory_mode=mode
    )
    convolution = L.Conv2D(8, 3, padding="same")
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), convolution, stack, L.GlobalAveragePooling2D(), L.Dense(5)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compiled(model, "sgd", loss, metrics=["accuracy"], run_eagerly=run_eagerly)
    history = model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    model.evaluate(x, y, verbose=0)
    model.train_on_batch(x[:8], y[:8])
    variables = [v.numpy() for v in model.variables]
    return history.history["loss"], model.predict(x, verbose=0), variables


@pytest.mark.parametrize("run_eagerly", [False, True])
@pytest.mark.parametrize("mode", ["reversible", "checkpoint"])
def test_fit_gives_the_weights_of_plain_training(mode, run_eagerly):
    found, expected = trained_by_fit(mode, run_eagerly), trained_by_fit("none", run_eagerly)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-3, atol=1e-4)
    for a, b in zip(found[2], expected[2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", ["reversible", "checkpoint"])
def test_a_train_step_of_its_own_trains_as_in_mode_none(mode):
    class Model(keras.Model):
        def __init__(self, mode):
            super().__init__()
            layers = [blocks.dropout(4) for _ in range(2)]
            self.stack = revkeras.ReversibleSequential(layers, memory_mode=mode)

        def call(self, x, training=None):
            return self.stack(x, training=training)

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            weights = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, weights), weights)
            return {"loss": loss}

    def train(mode):
        keras.utils.set_random_seed(0)
        model = Model(mode)
        model.compile(keras.optimizers.SGD(0.1), "mse")
        return fit(model, normal(32, 8), normal(32, 8) + 1, batch_size=16, epochs=2)

    assert_same_training(train(mode), train("none"))


@pytest.mark.parametrize("jit_compile", ["auto", True, False])
def test_compile_options_change_no_training(jit_compile):
    def train(mode, **options):
        keras.utils.set_random_seed(0)
        stack = revkeras.ReversibleSequential([blocks.dropout(4)], memory_mode=mode)
        model = keras.Sequential([keras.Input((8,)), stack])
        compiled(model, keras.optimizers.SGD(0.1), steps_per_execution=2, **options)
        return fit(model, normal(8, 8), normal(8, 8) + 1, batch_size=2)

    assert_same_training(
        train("reversible", jit_compile=jit_compile), train("none", jit_compile=False)
    )


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    layer = revkeras.ReversibleSequential([blocks.dense(8) for _ in range(3)])
    x = normal(4, 16)
    y = layer(x)
    assert y.dtype == "float32"
    assert layer.layers[0].compute_dtype == policy.removeprefix("mixed_")
    assert_modes_agree(layer, x, tolerance=5e-2)
    model = keras.Sequential([keras.Input((16,)), L.Dense(16), layer, L.Dense(1)])
    model.compile("sgd", "mse")
    if policy == "mixed_float16":
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    before = [v.numpy() for v in model.trainable_variables]
    model.fit(x, normal(4, 1), epochs=2, verbose=0)
    assert all(np.any(a != b.numpy()) for a, b in zip(before, model.trainable_variables))


def test_dtype_of_streams_and_of_blocks():
    assert (
        revkeras.ReversibleSequential([L.Dense(2)], dtype="float64")(normal(1, 4)).dtype
        == "float64"
    )
    assert (
        revkeras.ReversibleSequential([L.Dense(2)], dtype="bfloat16")(normal(1, 4)).dtype
        == "bfloat16"
    )
    layer = revkeras.ReversibleSequential(
        [L.Dense(4, dtype="float64"), L.Dense(4, dtype="mixed_bfloat16")], dtype="float64"
    )
    assert_modes_agree(layer, normal(2, 8, dtype="float64"), tolerance=2e-2)


def test_float32_weights_are_not_rounded_in_a_mixed_model():
    keras.config.set_dtype_policy("mixed_bfloat16")
    dense = L.Dense(2, use_bias=False, dtype="float32")
    layer = revkeras.ReversibleSequential([dense])
    model = keras.Sequential([keras.Input((4,)), L.Rescaling(1.0, dtype="float32"), layer])
    x = normal(3, 4)
    expected = x[:, :2] + x[:, 2:] @ dense.kernel.numpy()
    np.testing.assert_allclose(model(x)[:, 2:], expected, rtol=1e-6)


def test_gradient_is_none_where_plain_autodiff_gives_none():
    layer = revkeras.ReversibleSequential([Ignores(), Ignores()])
    for graph in False, True:
        assert_modes_agree(layer, normal(2, 4), graph=graph)


@keras.saving.register_keras_serializable("tests")
class TwoNames(L.Layer):
    def call(self, x, a=None, b=None):
        return keras.ops.tanh(x) * a + b


@keras.saving.register_keras_serializable("tests")
class Optional(L.Layer):
    """Uses a sublayer only if a context comes."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.own, self.other = L.Dense(4), L.Dense(4)

    def build(self, shape):
        self.own.build(shape)

    def call(self, x, context=None):
        return self.own(x) if context is None else self.own(x) + self.other(context)


@keras.saving.register_keras_serializable("tests")
class Required(L.Layer):
    """Takes a tensor and a number that have no defaults."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = L.Dense(4)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x, context, scale):
        return self.dense(x) * context * scale


@keras.saving.register_keras_serializable("tests")
class Counts(L.Layer):
    """Keeps a metric."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.mean = keras.metrics.Mean()

    def call(self, x):
        self.mean.update_state(x)
        return keras.ops.tanh(x)


@pytest.mark.parametrize("graph", [False, True])
def test_one_tensor_in_several_places(graph):
    x = tf.constant(normal(3, 4))
    layer = revkeras.ReversibleSequential([TwoNames(), TwoNames()], split_axis=None)
    layer(x, a=x, b=x)

    def gradient(layer):
        def run():
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.reduce_sum(layer(x, a=x, b=x) ** 2)
            return tape.gradient(y, x)

        return (tf.function(run) if graph else run)()

    expected = gradient(in_mode(layer, "none"))
    for mode in "reversible", "checkpoint":
        np.testing.assert_allclose(gradient(in_mode(layer, mode)), expected, rtol=1e-4)


@pytest.mark.parametrize("mode", ["reversible", "checkpoint"])
def test_sublayer_that_a_later_argument_brings_in(mode):
    layer = revkeras.ReversibleSequential([Optional()], memory_mode=mode)
    x = tf.constant(normal(3, 8))
    layer(x)
    with tf.GradientTape() as tape:
        y = tf.reduce_sum(layer(x, context=tf.ones((3, 4))) ** 2)
    weights = [v.value for v in layer.trainable_variables]
    assert len(weights) == 4
    assert all(d is not None for d in tape.gradient(y, weights))


@pytest.mark.parametrize(
    "wrap", [lambda b: revkeras.ReversibleSequential([b]), revkeras.Checkpoint]
)
def test_arguments_reach_blocks_inside_wrappers(wrap):
    inner = TwoNames() if wrap is revkeras.Checkpoint else Optional()
    channels = 4 if wrap is revkeras.Checkpoint else 8
    arguments = (
        {"a": tf.ones(4), "b": tf.ones(4)}
        if wrap is revkeras.Checkpoint
        else {"context": tf.ones((2, 4))}
    )
    layer = revkeras.ReversibleSequential([wrap(inner)])
    assert_modes_agree(layer, normal(2, 2 * channels), **arguments)


def test_required_arguments_in_a_file(tmp_path):
    inputs, context = keras.Input((8,)), keras.Input((4,))
    layer = revkeras.ReversibleSequential([Required(), L.Dense(4)])
    model = keras.Model([inputs, context], layer(inputs, context=context, scale=2.0))
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    feed = [normal(2, 8), normal(2, 4)]
    np.testing.assert_allclose(loaded(feed), model(feed), rtol=1e-6)


@pytest.mark.parametrize("graph", [False, True])
def test_metrics_and_recurrent_states_are_state(graph):
    layer = revkeras.ReversibleSequential([Counts(), Counts()])
    x = normal(2, 8)

    def values(mode):
        copy = in_mode(built, mode)
        (tf.function(copy) if graph else copy)(x)
        return [v.numpy() for v in copy.metrics_variables]

    layer(x)
    built = layer
    for mode in "reversible", "checkpoint":
        for a, b in zip(values(mode), values("none"), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
    recurrent = L.LSTM(4, return_sequences=True, stateful=True)
    outputs = {}
    for mode in MODES:
        stack = revkeras.ReversibleSequential([recurrent], memory_mode=mode)
        stack(normal(2, 3, 8))
        recurrent.reset_state()
        with tf.GradientTape() as tape:
            stack(normal(2, 3, 8))
            y = tf.reduce_sum(stack(normal(2, 3, 8)) ** 2)
        outputs[mode] = y, tape.gradient(y, recurrent.trainable_variables[0].value)
    for mode in "reversible", "checkpoint":
        for a, b in zip(outputs[mode], outputs["none"], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_mask_is_split_with_the_axis_that_it_covers():
    layer = revkeras.ReversibleSequential(
        [L.GRU(4, return_sequences=True) for _ in range(2)], split_axis=1
    )
    mask = tf.constant([[True, True, False, True, False, False]])
    assert_modes_agree(layer, normal(1, 6, 4), mask=mask)


def test_output_shape_with_further_outputs():
    layer = revkeras.ReversibleSequential([Returning(4)])
    y, square, more = layer.compute_output_shape((None, 8))
    assert (y, square, more["largest"]) == ((None, 8), (None, 1), (None,))
