"""The gradients, outputs and states of every memory mode are those of plain autodiff."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import revkeras
from tests import blocks
from tests.differentiation import FLOAT64_TOLERANCE, GRAPHS, cases, gradients
from tests.modes import assert_modes_agree, assert_same, in_mode, run_step

L = keras.layers


def momentum_forward(x, fx):
    return x * 0.9 + fx * 0.1


def momentum_inverse(y, fx):
    return (y - fx * 0.1) / 0.9


def gated_forward(x, fx):
    return x * (1.5 + keras.ops.tanh(fx)) + fx


def gated_inverse(y, fx):
    return (y - fx) / (1.5 + keras.ops.tanh(fx))


for function in (momentum_forward, momentum_inverse, gated_forward, gated_inverse):
    keras.saving.register_keras_serializable("tests")(function)

COUPLINGS = {
    "additive": (None, None),
    "momentum": (momentum_forward, momentum_inverse),
    "gated": (gated_forward, gated_inverse),
    "cycle": ([momentum_forward, gated_forward], [momentum_inverse, gated_inverse]),
}
TOLERANCE = {"float32": 2e-4, "float64": FLOAT64_TOLERANCE}


@settings(
    max_examples=cases(25),
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(
    kind=st.sampled_from(sorted(blocks.KINDS)),
    depth=st.integers(1, 3),
    coupling=st.sampled_from(sorted(COUPLINGS)),
    dtype=st.sampled_from(["float32", "float64"]),
    batch=st.integers(1, 4),
    size=st.integers(2, 5),
    training=st.booleans(),
    graph=st.sampled_from(GRAPHS),
    repeat=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_modes_agree(kind, depth, coupling, dtype, batch, size, training, graph, repeat, seed):
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(dtype)
    layers = [blocks.KINDS[kind](4) for _ in range(depth)]
    layer = revkeras.ReversibleSequential(layers + layers[: int(repeat)], *COUPLINGS[coupling])
    x = np.random.default_rng(seed).standard_normal((batch, *blocks.shape(kind, size), 8))
    assert_modes_agree(
        layer, x.astype(dtype), training=training, graph=graph, tolerance=TOLERANCE[dtype]
    )


@pytest.mark.tensorflow("its kernels, and XLA in their place")
@pytest.mark.parametrize("kind", sorted(blocks.KINDS))
def test_same_under_xla(kind):
    # Compared inside XLA: it draws other random bits than the kernels it replaces.
    layer = revkeras.ReversibleSequential([blocks.KINDS[kind](4) for _ in range(2)])
    x = np.random.default_rng(0).standard_normal((2, *blocks.shape(kind, 4), 8)).astype("float32")
    layer(x)
    options = {"training": True, "jit_compile": True}
    expected = run_step(in_mode(layer, "none"), x, **options)
    for mode in "reversible", "checkpoint":
        assert_same(run_step(in_mode(layer, mode), x, **options), expected)


@pytest.mark.tensorflow("a spy sees the values of eager calls")
@pytest.mark.parametrize("depth", [1, 8])
def test_input_is_rebuilt(depth):
    layer = revkeras.ReversibleSequential([blocks.KINDS["dropout"](4) for _ in range(depth)])
    x = np.random.default_rng(0).standard_normal((3, 8)).astype("float32")
    assert_modes_agree(layer, x, training=True)
    seen = []

    class Spy(keras.layers.Layer):
        def call(self, x):
            seen.append(x)
            return keras.ops.tanh(x)

    layer = revkeras.ReversibleSequential([Spy() for _ in range(depth)])
    with tf.GradientTape() as tape:
        variable = tf.Variable(x)
        y = layer(variable)
        del seen[:-depth]
        forward = list(seen)
    seen.clear()
    tape.gradient(y, variable)
    for rebuilt, kept in zip(reversed(seen), forward, strict=True):
        np.testing.assert_allclose(rebuilt, kept, atol=1e-5)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("mode", ["reversible", "checkpoint"])
def test_gradient_of_gradient(mode, graph):
    layers = [L.Dense(3, activation="tanh") for _ in range(3)]
    layer = revkeras.ReversibleSequential(layers, *COUPLINGS["gated"], dtype="float64")
    for block in layers:
        block.dtype_policy = "float64"
    x = np.random.default_rng(0).standard_normal((2, 6))
    layer(x)

    def second(layer):
        weights = layer.trainable_variables

        def penalty(x):
            (dx,) = gradients(lambda x: layer(x) ** 3, [x])
            return dx**2

        return gradients(penalty, [x], weights, graph=graph)

    for found, expected in zip(
        second(in_mode(layer, mode)), second(in_mode(layer, "none")), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=max(1e-8, FLOAT64_TOLERANCE), atol=1e-12)


@pytest.mark.tensorflow("tf.gradients")
@pytest.mark.parametrize("mode", ["reversible", "checkpoint"])
def test_gradient_of_gradient_without_a_tape(mode):
    layer = revkeras.ReversibleSequential([L.Dense(2, activation="tanh") for _ in range(3)])
    x = tf.constant(np.random.default_rng(0).standard_normal((2, 4)), tf.float32)
    layer(x)

    def second(layer):
        @tf.function
        def compute():
            (dx,) = tf.gradients(tf.reduce_sum(layer(x) ** 3), x)
            return tf.gradients(tf.reduce_sum(dx**2), x)

        return compute()

    found, expected = second(in_mode(layer, mode)), second(in_mode(layer, "none"))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.tensorflow("persistent tapes")
@pytest.mark.parametrize("mode", ["reversible", "checkpoint"])
def test_persistent_tape(mode):
    layer = revkeras.ReversibleSequential([L.Dense(2), L.Dense(2)], memory_mode=mode)
    x = tf.ones((2, 4))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        y = layer(x)
        a, b = tf.reduce_sum(y), tf.reduce_sum(y**2)
    first = tape.gradient(a, x)
    second = tape.gradient(b, x)
    with tf.GradientTape(persistent=True) as plain:
        plain.watch(x)
        y = in_mode(layer, "none")(x)
        a, b = tf.reduce_sum(y), tf.reduce_sum(y**2)
    np.testing.assert_allclose(first, plain.gradient(a, x), rtol=1e-5)
    np.testing.assert_allclose(second, plain.gradient(b, x), rtol=1e-5)


@pytest.mark.tensorflow("tapes around a graph")
def test_tape_around_a_graph():
    layer = revkeras.ReversibleSequential([blocks.KINDS["dense"](4) for _ in range(3)])
    x = tf.random.normal((2, 8))
    call = tf.function(layer)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(call(x) ** 2)
    found = tape.gradient(y, x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(in_mode(layer, "none")(x) ** 2)
    np.testing.assert_allclose(found, tape.gradient(y, x), rtol=1e-4, atol=1e-5)


@pytest.mark.tensorflow("sizes that a graph does not know")
def test_unknown_sizes():
    layer = revkeras.ReversibleSequential([blocks.KINDS["attention"](4) for _ in range(3)])
    layer(tf.ones((2, 3, 8)))
    plain = in_mode(layer, "none")

    def gradient(layer, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(layer(x) ** 2)
        return tape.gradient(y, x)

    signature = [tf.TensorSpec([None, None, 8])]
    compiled = tf.function(lambda x: gradient(layer, x), input_signature=signature)
    for shape in (2, 3, 8), (1, 5, 8):
        x = tf.random.normal(shape)
        np.testing.assert_allclose(compiled(x), gradient(plain, x), rtol=1e-3, atol=1e-4)
