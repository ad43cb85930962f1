"""A built stack takes tensors of which TensorFlow does not know the sizes, as Keras's layers do."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from revkeras import ReversibleSequential
from revkeras.layers import ActNorm, InvertibleDense, Permute, SpaceToDepth, Split
from tests.compiling import compiled

pytestmark = pytest.mark.tensorflow("sizes that a graph does not know")

L = keras.layers


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


class ChannelsFirst(L.Layer):
    """A 1x1 convolution of channels that come first."""

    def build(self, shape):
        self.kernel = self.add_weight((shape[1], shape[1]))

    def call(self, x):
        return keras.ops.einsum("bchw,cd->bdhw", x, self.kernel)


def dense(channels):
    return keras.Sequential([L.LayerNormalization(), L.Dense(channels, activation="tanh")])


def convolution(channels):
    return keras.Sequential([L.Conv2D(channels, 3, padding="same"), L.BatchNormalization()])


# Layers, options and inputs of each.
CASES = {
    "dense": (lambda: [dense(4), dense(4)], {}, normal(3, 8)),
    "affine": (lambda: [dense(8), dense(8)], {"coupling": "affine"}, normal(3, 8)),
    "pair": (lambda: [dense(8), dense(8)], {}, [normal(3, 8), normal(3, 8)]),
    "whole": (
        lambda: [L.Dense(8), InvertibleDense(), L.Dense(8)],
        {"split_axis": None},
        normal(3, 8),
    ),
    "images": (
        lambda: [convolution(2), SpaceToDepth(), convolution(8)],
        {},
        normal(2, 4, 4, 4),
    ),
    "images that are a pair": (
        lambda: [convolution(2), SpaceToDepth(), convolution(8)],
        {},
        (normal(2, 4, 4, 2), normal(2, 4, 4, 2)),
    ),
    "channels first": (
        lambda: [ChannelsFirst(), ChannelsFirst()],
        {"split_axis": 1},
        normal(2, 4, 3, 3),
    ),
    "invertible": (lambda: [L.Dense(4), ActNorm(), Permute(), L.Dense(4)], {}, normal(3, 8)),
    "split": (lambda: [dense(4), Split(), dense(2)], {}, normal(3, 8)),
}


def unknown(structure):
    return tf.nest.map_structure(lambda x: tf.TensorSpec([None] * len(x.shape), x.dtype), structure)


@pytest.mark.parametrize(
    ("case", "mode"),
    [*((case, "reversible") for case in CASES), ("dense", "checkpoint"), ("dense", "none")],
)
def test_a_built_stack_takes_tensors_of_unknown_sizes(case, mode):
    layers, options, x = CASES[case]
    x = tf.nest.map_structure(tf.constant, x)
    layer = ReversibleSequential(layers(), memory_mode=mode, **options)
    expected = layer(x)

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            loss = tf.add_n([tf.reduce_sum(t**2) for t in tf.nest.flatten(y)])
        return y, tape.gradient(loss, [x, [w.value for w in layer.trainable_variables]])

    traced = tf.function(step, input_signature=[unknown(x)])
    tf.nest.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), traced(x), step(x)
    )
    if layer.split_axis is None:
        return
    inverse = tf.function(layer.inverse, input_signature=[unknown(expected)])
    tf.nest.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), inverse(expected), x
    )


def test_fit_on_a_generator_of_unknown_sizes():
    x = normal(8, 8)
    data = tf.data.Dataset.from_generator(
        lambda: ((row, row) for row in x),
        output_signature=(tf.TensorSpec([None]), tf.TensorSpec([None])),
    )
    stack = ReversibleSequential([L.Dense(4), L.Dense(4)])
    model = keras.Sequential([keras.Input((8,)), stack])
    before = stack.get_weights()
    compiled(model, keras.optimizers.SGD(0.1))
    model.fit(data.batch(4), verbose=0)
    expected = keras.models.clone_model(model)
    expected.set_weights(before)
    compiled(expected, keras.optimizers.SGD(0.1))
    expected.fit(x, x, batch_size=4, shuffle=False, verbose=0)
    for a, b in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_another_size_than_that_of_the_build_is_refused():
    layer = ReversibleSequential([L.ReLU()])
    layer(normal(3, 8))
    traced = tf.function(layer, input_signature=[tf.TensorSpec([None, None])])
    with pytest.raises(tf.errors.InvalidArgumentError):
        traced(tf.ones((3, 6)))


@pytest.mark.parametrize("make", [InvertibleDense, ActNorm, Permute])
def test_a_layer_with_an_inverse_takes_them_too(make):
    layer, x = make(), tf.constant(normal(3, 4))
    traced = tf.function(layer, input_signature=[tf.TensorSpec([None, None])])
    expected = layer(x)
    np.testing.assert_allclose(traced(x), expected, rtol=1e-6)
