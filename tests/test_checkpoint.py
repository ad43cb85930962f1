"""Gradient checkpointing of one layer: the gradients and states of the layer itself."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src import testing

from revkeras import Checkpoint
from tests import blocks
from tests.compiling import compiled
from tests.differentiation import gradients
from tests.modes import assert_same, assert_same_training, fit, run_step

L = keras.layers


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("kind", sorted(blocks.KINDS))
def test_same_as_the_layer(kind, graph):
    layer = blocks.KINDS[kind](4)
    x = normal(4, *blocks.shape(kind, 3), 4)
    wrapped = Checkpoint(layer)
    wrapped(x)
    found, expected = (run_step(t, x, graph=graph, training=True) for t in (wrapped, layer))
    assert_same(found, expected, 1e-4)


@pytest.mark.parametrize("graph", [False, True])
def test_further_arguments(graph):
    layer = L.MultiHeadAttention(2, 4, dropout=0.3)
    context = keras.ops.convert_to_tensor(normal(2, 5, 4))
    arguments = {"value": context, "use_causal_mask": True, "training": True}
    wrapped = Checkpoint(layer)
    x = normal(2, 3, 4)
    wrapped(x, **arguments)
    found, expected = (run_step(t, x, graph=graph, **arguments) for t in (wrapped, layer))
    assert_same(found, expected, 1e-4)


def test_integer_input():
    def train(wrap):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,), dtype="int32"), wrap(L.Embedding(5, 4))])
        compiled(model, keras.optimizers.SGD(0.1))
        return fit(model, np.array([[0, 1, 2]]), normal(1, 3, 4), epochs=2)

    assert_same_training(train(Checkpoint), train(lambda layer: layer))


def test_masks_pass_through():
    model = keras.Sequential(
        [L.Embedding(5, 4, mask_zero=True), Checkpoint(blocks.attention(4)), L.LSTM(2)]
    )
    tokens = np.array([[1, 2, 0], [3, 0, 0]])
    plain = keras.Sequential([model.layers[0], model.layers[1].layer, model.layers[2]])
    np.testing.assert_allclose(model(tokens), plain(tokens), rtol=1e-5, atol=1e-6)


def test_inside_fit_and_file(tmp_path):
    model = keras.Sequential([keras.Input((4,)), Checkpoint(blocks.batch_norm(4)), L.Dense(1)])
    compiled(model, "adam")
    model.fit(normal(8, 4), normal(8, 1), verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(loaded(normal(8, 4)), model(normal(8, 4)), rtol=1e-6)


@pytest.mark.parametrize("graph", [False, True])
def test_one_tensor_twice(graph):
    layer = L.MultiHeadAttention(2, 4)
    wrapped = Checkpoint(layer)
    x = normal(2, 3, 4)
    wrapped(x, x)
    found, expected = (
        gradients(lambda x, call=call: call(x, x) ** 2, [x], graph=graph)
        for call in (wrapped, layer)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_variable_as_an_argument(run_eagerly):
    class Scaled(L.Layer):
        def call(self, x, scale):
            return x * scale

    class Model(keras.Model):
        def __init__(self, scaled):
            super().__init__()
            self.scaled = scaled

        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

        def call(self, x):
            return self.scaled(x, scale=self.scale)

    def train(scaled):
        model = Model(scaled)
        model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=run_eagerly)
        return fit(model, normal(4, 3), normal(4, 3) + 1, epochs=2)

    assert_same_training(train(Checkpoint(Scaled())), train(Scaled()))


@pytest.mark.tensorflow("its random numbers")
def test_what_cannot_be_replayed_is_refused():
    layer = Checkpoint(L.Lambda(lambda x: x * tf.random.normal((6, 4)), name="noisy"))
    with pytest.raises(
        ValueError, match="Layer 'noisy' .*runs TensorFlow's RandomStand.*`keras.random`"
    ):
        tf.function(layer)(normal(6, 4), training=True)
    tf.function(layer)(normal(6, 4), training=False)  # nothing is replayed


def test_inside_time_distributed():
    outputs = L.TimeDistributed(Checkpoint(L.Dense(3)))(keras.Input((6, 8)))
    assert outputs.shape == (None, 6, 3)


class Conformance(testing.TestCase):
    def test_dropout(self):
        self.run_layer_test(
            Checkpoint,
            init_kwargs={"layer": blocks.dropout(4)},
            input_shape=(2, 4),
            expected_output_shape=(2, 4),
            run_mixed_precision_check=False,  # a wrapper's own dtype is the wrapped layer's
        )
