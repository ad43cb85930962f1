"""Sharded parameters in one process: the order of collectives, and values that look whole."""

import keras
import numpy as np
import tensorflow as tf

import revkeras
from revkeras._engine import verbs
from revkeras.distribute.engines.local import LocalEngine
from revkeras.distribute.parameters import Spread, follow, shard, unshard


class Recording(LocalEngine):
    """An engine of one worker that notes which collectives it is asked for."""

    def __init__(self):
        self.calls = []

    def all_gather(self, x):
        self.calls.append("gather")
        return x

    def reduce_scatter(self, x):
        self.calls.append("scatter")
        return x


def dense_stack(n):
    blocks = [keras.layers.Dense(4, activation="tanh") for _ in range(n)]
    stack = revkeras.ReversibleSequential(blocks)
    stack.build((None, 8))
    return stack


def gradients(stack, x):
    @tf.function
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(stack(x) ** 2)
        return tape.gradient(loss, [x, *stack.trainable_variables])

    return run(x)


def test_one_gather_a_pass_and_the_next_before_the_gradients_of_this_one():
    n, x = 4, tf.random.stateless_normal((6, 8), (0, 1))
    stack, engine = dense_stack(n), Recording()
    expected = gradients(stack, x)
    for v in stack.trainable_variables:
        shard(v, engine, keras.Variable._initialize)
    stack.residence = Spread(engine, verbs.residence(None), {})
    engine.calls.clear()
    found = gradients(stack, x)
    backwards = ["gather", *["gather", "scatter"] * (n - 1), "scatter"]
    assert engine.calls == ["gather"] * n + backwards
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.reshape(a, b.shape), b, rtol=1e-5, atol=1e-6)


def test_a_sharded_variable_looks_whole():
    layer = keras.layers.Dense(3)
    layer.build((None, 2))
    before, x = layer.kernel.numpy(), tf.ones((4, 2))
    expected = layer(x)
    shard(layer.kernel, Recording(), keras.Variable._initialize)
    assert tuple(layer.kernel.shape) == (2, 3)
    assert layer.kernel._value.shape == (6,)
    np.testing.assert_array_equal(layer.kernel.numpy(), before)
    np.testing.assert_array_equal(layer(x), expected)
    layer.set_weights([2 * before, np.zeros(3)])
    np.testing.assert_array_equal(np.asarray(layer.kernel), 2 * before)
    unshard(layer.kernel, keras.Variable._initialize)
    assert type(layer.kernel) is keras.Variable
    np.testing.assert_array_equal(layer.kernel.numpy(), 2 * before)


def test_a_tape_gives_slices():
    layer = keras.layers.Dense(3)
    layer.build((None, 2))
    shard(layer.kernel, Recording(), keras.Variable._initialize)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(tf.ones((4, 2))))
    np.testing.assert_array_equal(tape.gradient(loss, [layer.kernel])[0], np.full(6, 4.0))


def test_a_master_takes_what_is_not_its_own_value_rounded():
    master = keras.Variable([1.001, 2.001, 3.001])
    rounded = tf.cast(tf.cast(master.value, "bfloat16"), "float32")
    own = master.numpy()
    follow(master, tf.minimum(rounded, 2.5), "bfloat16")
    np.testing.assert_array_equal(master, [own[0], own[1], 2.5])
    follow(master, tf.minimum(master.value, 2.0005), "float32")
    np.testing.assert_array_equal(master, np.float32([own[0], 2.0005, 2.0005]))
