"""Steps compiled by XLA."""

import functools
import gc

import keras
import numpy as np
import pytest
import tensorflow as tf

import revkeras
from revkeras._engine.tensorflow.compilation import compiled
from tests import blocks
from tests.compiling import compiled as compiled_once
from tests.graphs import graph_function, graph_of_gradient, operations
from tests.modes import assert_same, assert_same_training, built, fit, in_mode, run_step

pytestmark = pytest.mark.tensorflow("a block that XLA compiles in a graph")

INPUTS = {"convolution": (2, 4, 4, 8), "noise": (4, 6, 8)}


@pytest.mark.parametrize(
    "kind", ["dense", "dropout", "batch_norm", "regularized", "convolution", "noise"]
)
def test_same_as_plain_training_under_xla(kind):
    x = tf.random.stateless_normal(INPUTS.get(kind, (6, 8)), (0, 1))
    layers = [getattr(blocks, kind)(4) for _ in range(2)]
    stack = built(revkeras.ReversibleSequential(layers, jit_compile=True), x)
    found = run_step(in_mode(stack, "reversible"), x, training=True)
    # Compared inside XLA: it draws other random bits than the kernels it replaces.
    expected = run_step(in_mode(stack, "none"), x, training=True, jit_compile=True)
    assert_same(found, expected)


@pytest.mark.parametrize("kind", ["recurrent", "conditional"])
def test_functions_inside_outlive_the_trace(kind):
    class Conditional(keras.layers.Layer):
        def call(self, x):
            x = keras.random.dropout(x, 0.5, seed=3)
            return tf.cond(tf.reduce_sum(x) > 0.0, lambda: 0.5 * x, lambda: x)

    def block():
        if kind == "conditional":
            return Conditional()
        return keras.Sequential(
            [keras.layers.SimpleRNN(4, return_sequences=True), keras.layers.Dropout(0.5)]
        )

    x = tf.random.stateless_normal((2, 3, 8), (0, 1))
    layers = [block() for _ in range(2)]
    stack = built(revkeras.ReversibleSequential(layers, jit_compile=True), x)
    gradient = graph_function(stack, x, training=True)
    gc.collect()
    assert np.all(np.isfinite(gradient(x)[0]))


def test_one_tensor_in_two_places_eagerly():
    @keras.saving.register_keras_serializable("tests")
    class Product(keras.layers.Layer):
        def call(self, x, a=None, b=None):
            return x * a * b

    x = tf.random.stateless_normal((6, 8), (0, 1))
    c = x[:, :4]
    stack = revkeras.ReversibleSequential([Product() for _ in range(2)], jit_compile=True)
    stack(x, a=c, b=c)
    found = run_step(in_mode(stack, "reversible"), x, graph=False, a=c, b=c)
    assert_same(found, run_step(in_mode(stack, "none"), x, graph=False, a=c, b=c))


def test_custom_gradients_are_exported(tmp_path):
    stack = revkeras.ReversibleSequential(
        [keras.layers.Dense(4, activation="silu") for _ in range(2)], jit_compile=True
    )
    model = keras.Sequential([keras.Input((8,)), stack])
    model.export(tmp_path, verbose=False)
    x = tf.random.stateless_normal((6, 8), (0, 1))
    loaded = tf.saved_model.load(tmp_path)
    tf.debugging.assert_near(loaded.serve(x), model(x), 1e-4, 1e-4)


def test_compiled_blocks_share():
    x = tf.ones((6, 8))
    few, many = (
        built(
            revkeras.ReversibleSequential([blocks.dense(4) for _ in range(n)], jit_compile=True), x
        )
        for n in (2, 7)
    )
    counts = [operations(graph_of_gradient(s, x, training=True), "MatMul") for s in (few, many)]
    assert counts[0] == counts[1] > 0


@functools.cache
def trained(mode, compile_model):
    keras.utils.set_random_seed(0)
    x = tf.random.stateless_normal((20, 8), (0, 1))
    layers = [blocks.dropout(4) for _ in range(2)]
    stack = revkeras.ReversibleSequential(layers, jit_compile=True, memory_mode=mode)
    model = keras.Sequential([keras.Input((8,)), stack, keras.layers.Dense(1)])
    compiled_once(model, keras.optimizers.SGD(0.1), jit_compile=compile_model)
    return fit(model, x, tf.reduce_sum(x, 1), batch_size=8, epochs=2)


@pytest.mark.parametrize("compile_model", ["auto", True, False])
def test_fit_is_as_plain_training_under_xla(compile_model):
    assert_same_training(trained("reversible", compile_model), trained("none", True))


def test_in_mode_none_the_whole_model_is_compiled():
    stack = revkeras.ReversibleSequential([keras.layers.Dense(4)] * 2, memory_mode="none")
    model = keras.Sequential([keras.Input((8,)), stack])
    model.compile("sgd", "mse", jit_compile=True)
    assert model.jit_compile
    model.fit(np.ones((2, 8)), np.ones((2, 8)), verbose=0)


def test_layers_that_xla_does_not_support_are_left_out():
    x = tf.random.stateless_normal((6, 8), (0, 1))
    layers = [keras.layers.Dense(4, activation="tanh") for _ in range(3)]
    layers[1].supports_jit = False
    stack = built(revkeras.ReversibleSequential(layers, jit_compile=True), x)
    nodes = graph_of_gradient(stack, x).as_graph_def().node
    calls = [node for node in nodes if node.op == "PartitionedCall"]
    assert [node.attr["_XlaMustCompile"].b for node in calls] == [True, False, True] * 2
    assert_same(run_step(stack, x), run_step(in_mode(stack, "none"), x))


def test_random_numbers_are_those_of_philox_and_drawn_by_it():
    # Left to XLA's choice, the same numbers took fifty times as long on a CPU.
    def draw(seed):
        return tf.random.stateless_uniform((5,), seed), tf.random.stateless_normal((5,), seed)

    seed = tf.constant([3, 4])
    call = tf.function(lambda seed: compiled(draw)(seed), autograph=False)
    found = call(seed)
    for a, b in zip(found, tf.function(draw, jit_compile=True)(seed)):
        tf.debugging.assert_near(a, b)
    (function,) = call.get_concrete_function(seed).graph.as_graph_def().library.function
    nodes = {node.name: node for node in function.node_def}
    drawn = [
        n for n in nodes.values() if n.op in ("StatelessRandomUniformV2", "StatelessRandomNormalV2")
    ]
    assert len(drawn) >= 2
    for node in drawn:
        name, _, _ = node.input[3].partition(":")
        algorithm = tf.make_ndarray(nodes[name].attr["value"].tensor)
        assert algorithm == tf.random.Algorithm.PHILOX.value


def test_sizes_unknown_when_traced():
    x = tf.random.stateless_normal((6, 8), (0, 1))
    stack = built(revkeras.ReversibleSequential([blocks.dense(4)] * 2, jit_compile=True), x)

    @tf.function(input_signature=[tf.TensorSpec((None, 8))])
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(stack(x) ** 2)
        return tape.gradient(y, x)

    expected = run_step(in_mode(stack, "none"), x[:4])
    for batch in 6, 4:
        found = gradient(x[:batch])
    tf.debugging.assert_near(found * 0.1, expected.input_gradients[0], 1e-4, 1e-4)


def test_not_beside_exact_couplings():
    layers = [keras.layers.Dense(4)]
    with pytest.raises(ValueError, match=r"`jit_compile`: .* Additive\(exact=True\), .* same bits"):
        revkeras.ReversibleSequential(
            layers, coupling=revkeras.couplings.Additive(exact=True), jit_compile=True
        )


@pytest.mark.parametrize("jit_compile", ["yes", None, 1])
def test_bad_values(jit_compile):
    message = f"`jit_compile`: expected True, False or 'auto', received jit_compile={jit_compile!r}"
    with pytest.raises(ValueError, match=message):
        revkeras.ReversibleSequential([keras.layers.Dense(4)], jit_compile=jit_compile)


def test_saved_and_loaded():
    stack = revkeras.ReversibleSequential([keras.layers.Dense(4)], jit_compile=True)
    assert revkeras.ReversibleSequential.from_config(stack.get_config()).jit_compile is True
