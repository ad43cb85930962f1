"""The backward pass replays what the forward pass did, or an error says why it cannot."""

import gc

import keras
import numpy as np
import pytest
import tensorflow as tf

import revkeras
from tests.differentiation import gradients
from tests.modes import in_mode

L = keras.layers
MODES = ["reversible", "checkpoint"]


class Schedule:
    value = 1.0


@keras.saving.register_keras_serializable("tests")
class Scheduled(L.Layer):
    """Depends on Python attributes of every kind."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.scale = 1.0
        self.seed = 1.0
        self.calls = 0
        self.factors = [1.0]
        self.by_name = {"bias": 0.1}
        self.activation = keras.ops.tanh
        self.schedule = Schedule()
        self.dense = L.Dense(2)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        self.calls += 1
        y = self.activation(self.dense(x)) * self.scale * self.seed
        y *= self.factors[0] * self.schedule.value
        return y * (1 + 0.1 * self.calls) + self.by_name["bias"]


CHANGES = {
    "a number": lambda block: setattr(block, "scale", 3.0),
    "a name that Keras uses": lambda block: setattr(block, "seed", 3.0),
    "an item of a list": lambda block: block.factors.__setitem__(0, 3.0),
    "a longer list": lambda block: block.factors.insert(0, 3.0),
    "an item of a dictionary": lambda block: block.by_name.__setitem__("bias", 3.0),
    "a function": lambda block: setattr(block, "activation", keras.ops.sin),
    "an object's attribute": lambda block: setattr(block.schedule, "value", 3.0),
    "another object": lambda block: setattr(block, "schedule", Schedule()),
    "a part's attribute": lambda block: setattr(block.dense, "activation", keras.ops.sigmoid),
}


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("change", sorted(CHANGES))
def test_attributes_are_those_of_the_forward_pass(change, mode, graph):
    x = np.random.default_rng(0).standard_normal((3, 4)).astype("float32")
    stack = revkeras.ReversibleSequential([Scheduled(), Scheduled()])
    stack(x)

    def in_the_mode(mode):
        copy = in_mode(stack, mode)
        for block in copy.layers:
            block.calls = 0

        def compute(x):
            y = copy(x) ** 2
            CHANGES[change](copy.layers[0])
            y += copy(x) ** 3
            CHANGES[change](copy.layers[1])
            return y

        found = gradients(compute, [x], copy.trainable_weights, graph=graph)
        assert [block.calls for block in copy.layers] == [2, 2]
        return found

    for found, expected in zip(in_the_mode(mode), in_the_mode("none"), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


UNREPEATABLE = {
    "py_function": lambda x: tf.ensure_shape(tf.py_function(np.tanh, [x], x.dtype), x.shape),
    "numpy_function": lambda x: tf.ensure_shape(tf.numpy_function(np.tanh, [x], x.dtype), x.shape),
    "random": lambda x: x * tf.random.normal(tf.shape(x)),
    "generator": lambda x: x * tf.random.get_global_generator().normal(tf.shape(x)),
    "timestamp": lambda x: x * tf.cast(tf.timestamp(), x.dtype),
    "in a condition": lambda x: tf.cond(
        tf.reduce_sum(x) > 0, lambda: x, lambda: x * tf.random.uniform(tf.shape(x))
    ),
    "fractional pooling": lambda x: tf.nn.fractional_max_pool(x[:, None, :, None], [1, 1, 1, 1])[0][
        :, 0, :, 0
    ],
}


@pytest.mark.tensorflow("its operations")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", sorted(UNREPEATABLE))
def test_what_would_not_repeat_itself_is_refused(kind, mode):
    stack = revkeras.ReversibleSequential([L.Lambda(UNREPEATABLE[kind], name="odd")])
    stack.memory_mode = mode
    with pytest.raises(ValueError, match="Block 0 .'odd'.* runs TensorFlow's .* replayed"):
        tf.function(stack)(tf.ones((6, 8)), training=True)


@pytest.mark.tensorflow("its operations")
@pytest.mark.parametrize("mode", MODES)
def test_what_repeats_itself_is_not_refused(mode):
    def call(x):
        tf.debugging.assert_all_finite(x, "finite")
        tf.debugging.assert_greater(tf.shape(x)[0], 0)
        y = tf.numpy_function(np.tanh, [x], x.dtype, stateful=False)
        return tf.ensure_shape(y, x.shape)

    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([6], [2.0]), 1.0)
    layers = [L.Lambda(call), L.Lambda(lambda x: x * table.lookup(tf.shape(x)[0]))]
    stack = revkeras.ReversibleSequential(layers, memory_mode=mode)
    assert tf.function(stack)(tf.ones((6, 8)), training=True).shape == (6, 8)


@pytest.mark.tensorflow("ForwardAccumulator")
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_forward_mode_is_refused(mode, graph):
    stack = revkeras.ReversibleSequential([L.Dense(2)], memory_mode=mode)
    x = tf.ones((1, 4))
    stack(x)

    def at_input():
        with tf.autodiff.ForwardAccumulator(x, x):
            return stack(x)

    def at_weight():
        kernel = stack.trainable_weights[0].value
        with tf.autodiff.ForwardAccumulator(kernel, tf.ones((2, 2))):
            return stack(x)

    for compute in at_input, at_weight:
        with pytest.raises(NotImplementedError, match="ForwardAccumulator.*memory_mode='none'"):
            (tf.function(compute) if graph else compute)()


@pytest.mark.parametrize("mode", [*MODES, "none"])
def test_masks_are_not_left_on_what_was_passed_in(mode):
    stack = revkeras.ReversibleSequential([L.Dense(2), L.Dense(2)], memory_mode=mode)
    ops = keras.ops
    streams = [ops.ones((1, 3, 2)), ops.convert_to_tensor([[[1.0] * 2, [3.0] * 2, [5.0] * 2]])]
    stack(streams, mask=ops.convert_to_tensor([[True, False, False]]))
    np.testing.assert_allclose(L.GlobalAveragePooling1D()(streams[1]), [[3.0, 3.0]])


@pytest.mark.tensorflow("reads the graph of a step")
def test_gradients_of_a_graph_that_is_gone_say_so():
    def definition():
        stack = revkeras.ReversibleSequential([keras.layers.Dense(2)])
        stack(tf.ones((1, 4)))
        traced = tf.function(lambda x: stack(x)).get_concrete_function(tf.ones((1, 4)))
        return traced.graph.as_graph_def(), traced.inputs[0].name, traced.outputs[0].name

    imported, *names = definition()
    keras.utils.clear_session()
    gc.collect()
    with tf.Graph().as_default():
        x, y = tf.import_graph_def(imported, return_elements=names)
        with pytest.raises(LookupError, match="graph .* is gone.*Keep the `tf.function`"):
            tf.gradients(y, x)
