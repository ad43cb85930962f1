"""Blocks that trace to the same graph share their compiled passes, and no others do."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import revkeras
from revkeras._engine.tensorflow.fingerprint import fingerprint
from tests import blocks
from tests.graphs import graph_of_gradient, operations
from tests.modes import assert_modes_agree, assert_same, built, in_mode, run_step

pytestmark = pytest.mark.tensorflow("passes that a graph shares")


@keras.saving.register_keras_serializable("tests")
class Scaled(keras.layers.Layer):
    """A block whose output depends on an attribute that its config does not show."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = keras.layers.Dense(4, activation="tanh")
        self.scale = 1.0

    def build(self, input_shape):
        self.inner.build(input_shape)
        self.built = True

    def call(self, x):
        return self.inner(x) * self.scale


class Weighed(keras.layers.Layer):
    """A block whose gradient depends on an attribute, and whose output does not."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        @tf.custom_gradient
        def square(x):
            return x**2, lambda dy: dy * self.factor * x

        return 0.1 * square(x)


def n_passes(layer, x, **arguments):
    """How many different steps a stack comes to."""
    return len(graph_of_gradient(layer, x, **arguments)._revkeras_passes)


def stack_of(layers, x, **options):
    return built(revkeras.ReversibleSequential(layers, **options), x)


@pytest.fixture
def x():
    return tf.random.stateless_normal((6, 8), (0, 1))


@pytest.mark.parametrize("kind", ["dense", "dropout", "batch_norm", "regularized"])
def test_equal_blocks_share_whatever_their_number(x, kind):
    block = getattr(blocks, kind)
    few, many = (stack_of([block(4) for _ in range(n)], x) for n in (2, 9))
    counts = [operations(graph_of_gradient(s, x, training=True), "MatMul") for s in (few, many)]
    assert counts[0] == counts[1] > 0
    assert n_passes(many, x, training=True) == 1


def test_blocks_that_differ_in_a_hidden_attribute_do_not_share(x):
    layers = [Scaled() for _ in range(4)]
    stack = stack_of(layers, x)
    assert n_passes(stack, x) == 1
    layers[1].scale = 2.0  # neither the class nor the config tells
    assert layers[0].get_config().keys() == layers[1].get_config().keys()
    assert n_passes(stack, x) == 2
    plain = in_mode(stack, "none")
    plain.layers[1].scale = 2.0
    assert_same(run_step(stack, x), run_step(plain, x))


def test_blocks_that_differ_in_what_a_function_closes_over_do_not_share(x):
    factors = [1.0, 2.0, 1.0]

    def scaled(factor):
        return keras.layers.Lambda(lambda x: 0.1 * factor * x)

    stack = stack_of([scaled(factor) for factor in factors], x)
    assert n_passes(stack, x) == 2
    expected = run_step(stack_of([scaled(f) for f in factors], x, memory_mode="none"), x)
    assert_same(run_step(stack, x), expected)


def test_blocks_that_differ_in_a_large_constant_do_not_share(x):
    constants = [tf.random.stateless_normal((400, 4), (i, 2)) for i in (0, 1, 0)]

    def added(constant):
        return keras.layers.Lambda(lambda x: x + tf.reduce_mean(constant, 0))

    layers = [added(constants[0]), added(constants[1]), added(constants[0])]
    stack = stack_of(layers, x)
    assert n_passes(stack, x) == 2
    expected = run_step(stack_of(layers, x, memory_mode="none"), x)
    assert_same(run_step(stack, x), expected)


def test_blocks_that_differ_in_their_gradients_alone_do_not_share(x):
    assert n_passes(stack_of([Weighed(1.0) for _ in range(4)], x), x) == 1
    layers = [Weighed(1.0), Weighed(3.0), Weighed(1.0)]
    stack = stack_of(layers, x)
    assert n_passes(stack, x) == 2
    assert_same(run_step(stack, x), run_step(stack_of(layers, x, memory_mode="none"), x))


def test_blocks_with_equal_custom_gradients_share(x):
    layers = [keras.layers.Dense(4, activation="silu") for _ in range(5)]
    assert n_passes(stack_of(layers, x), x) == 1
    assert_modes_agree(revkeras.ReversibleSequential(layers), x)


def test_couplings_that_differ_do_not_share(x):
    layers = [keras.layers.Dense(4) for _ in range(6)]
    halves = revkeras.couplings.Leapfrog(0.5), revkeras.couplings.Leapfrog(0.25)
    stack = stack_of(layers, x, coupling=list(halves))
    assert n_passes(stack, x) == 2
    assert_modes_agree(stack, x)


def test_runs_of_equal_blocks_share(x):
    x = tf.random.stateless_normal((2, 8, 8, 4), (0, 1))
    layers = [
        *(keras.layers.Conv2D(2, 3, padding="same", activation="tanh") for _ in range(3)),
        revkeras.layers.SpaceToDepth(),
        *(blocks.convolution(8) for _ in range(3)),
        revkeras.layers.SpaceToDepth(),
        *(keras.layers.Dense(32, activation="gelu") for _ in range(3)),
        keras.layers.Dense(32, activation="relu"),
    ]
    stack = stack_of(layers, x)
    assert n_passes(stack, x, training=True) == 6
    assert_modes_agree(stack, x, training=True)


def test_frozen_blocks_do_not_share_with_others(x):
    layers = [keras.layers.Dense(4, activation="tanh") for _ in range(4)]
    layers[2].trainable = False
    stack = stack_of(layers, x)
    assert n_passes(stack, x) == 2
    assert_modes_agree(stack, x)


def test_stacks_of_one_model_share(x):
    stacks = [stack_of([keras.layers.Dense(4) for _ in range(3)], x) for _ in range(2)]
    model = keras.Sequential([keras.Input((8,)), *stacks])
    assert n_passes(model, x) == 1


def test_a_check_names_the_block_that_failed(x):
    layers = [Scaled(name=f"block_{i}") for i in range(3)]
    stack = stack_of(layers, x)
    layers[2].inner.bias.assign([np.nan] * 4)
    revkeras.debugging.enable_checks()
    try:
        with pytest.raises(tf.errors.InvalidArgumentError, match="Block 2 .'block_2'"):
            tf.function(stack)(x)
    finally:
        revkeras.debugging.disable_checks()


@pytest.mark.parametrize("mode", ["reversible", "checkpoint"])
@pytest.mark.parametrize("draw", [tf.random.normal, tf.random.uniform])
def test_random_numbers_that_cannot_be_drawn_again_are_refused(x, draw, mode):
    layers = [keras.layers.Lambda(lambda x: x * draw((6, 4)), name="noisy")]
    stack = stack_of(layers, x, memory_mode=mode)
    message = "Block 0 .'noisy'.* runs TensorFlow's Random.*`keras.random`"
    with pytest.raises(ValueError, match=message):
        tf.function(stack)(x, training=True)
    tf.function(stack)(x, training=False)  # nothing is replayed
    tf.function(stack_of(layers, x, memory_mode="none"))(x)


@pytest.mark.parametrize("mode", ["reversible", "checkpoint"])
@pytest.mark.parametrize("change", ["numpy", "counter"])
def test_blocks_that_trace_to_another_graph_each_time_are_refused(x, change, mode):
    count = iter(range(100))

    class Changing(keras.layers.Layer):
        def call(self, x):
            return x * (np.random.rand() if change == "numpy" else next(count))

    layers = [Changing(name="changing"), keras.layers.Dense(4)]
    stack = stack_of(layers, x, memory_mode=mode)
    message = "Block 0 .'changing'.* does not trace to the same graph twice.*`keras.random`"
    with pytest.raises(ValueError, match=message):
        tf.function(stack)(x, training=True)
    tf.function(stack_of(layers, x, memory_mode="none"))(x)


def traced_fingerprint(function, *arguments):
    found = []
    tf.function(lambda: found.append(fingerprint(function, arguments)))()
    return found[0]


class TestFingerprint:
    def test_names_do_not_count(self):
        def named(name):
            def function(x):
                with tf.name_scope(name):
                    return tf.nn.relu(tf.identity(x, name=name) + 1.0)

            return function

        arguments = [tf.ones((2, 3))]
        assert traced_fingerprint(named("a"), *arguments) == traced_fingerprint(
            named("b"), *arguments
        )

    @pytest.mark.parametrize(
        "other",
        [
            lambda x: x + 2.0,
            lambda x: x - 1.0,
            lambda x: 1.0 + x,
            lambda x: tf.stop_gradient(x) + 1.0,
            lambda x: (x + 1.0, x),
            lambda x: [x + 1.0],
            lambda x: tf.reshape(x + 1.0, (3, 2)),
        ],
    )
    def test_what_is_computed_counts(self, other):
        arguments = [tf.ones((2, 3))]
        assert traced_fingerprint(lambda x: x + 1.0, *arguments) != traced_fingerprint(
            other, *arguments
        )

    @pytest.mark.parametrize("other", [tf.ones((3, 2)), tf.ones((2, 3), "float64")])
    def test_shapes_and_dtypes_count(self, other):
        assert traced_fingerprint(tf.nn.relu, tf.ones((2, 3))) != traced_fingerprint(
            tf.nn.relu, other
        )

    def test_devices_count(self):
        def on(device):
            def function(x):
                with tf.device(device):
                    return x + 1.0

            return function

        x = tf.ones(3)
        assert traced_fingerprint(on("CPU:0"), x) != traced_fingerprint(on("CPU:1"), x)

    @pytest.mark.parametrize("kind", ["function", "while", "cond"])
    def test_functions_inside_count_by_what_they_do(self, kind):
        def calling(factor):
            def function(x):
                if kind == "function":
                    return tf.function(lambda x: factor * x)(x)
                if kind == "while":
                    return tf.while_loop(lambda x: x[0] < 9.0, lambda x: [factor * x], [x])[0]
                return tf.cond(x[0] < 1.0, lambda: factor * x, lambda: x)

            return function

        x = tf.ones(3)
        same, again, other = (traced_fingerprint(calling(f), x) for f in (2.0, 2.0, 3.0))
        assert same == again != other

    def test_what_is_read_from_outside_counts(self):
        variables = tf.Variable(1.0), tf.Variable(1.0)
        same, again, other = (
            traced_fingerprint(lambda x, v=v: x * v, tf.ones(3))
            for v in (variables[0], variables[0], variables[1])
        )
        assert same == again != other
