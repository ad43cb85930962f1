"""The contestants on Keras: the memory modes, `keras.remat`, and plain Keras models.

`keras.RematScope` does not compete: on TensorFlow it hands `training` to
`tf.recompute_grad`, which refuses keyword arguments in a graph, so a compiled model of
such layers raises a ValueError.
"""

import math

import keras
import tensorflow as tf
from measurement import Training
from workloads import HEADS, WORKLOADS

import revkeras

L = keras.layers
VERSIONS = {
    "revkeras": revkeras.__version__,
    "keras": keras.__version__,
    "tensorflow": tf.__version__,
}


def attention_block(shape):
    x = keras.Input(shape)
    h = L.LayerNormalization()(x)
    h = L.MultiHeadAttention(HEADS, shape[-1] // HEADS, use_bias=False)(h, h)
    return keras.Model(x, h)


def feed_forward_layers(channels, dropout):
    layers = [L.LayerNormalization(), L.Dense(4 * channels), L.Activation("gelu")]
    if dropout:
        layers.append(L.Dropout(dropout))
    return [*layers, L.Dense(channels)]


def convolution_layers(channels):
    return [
        L.Conv2D(channels, 3, padding="same", use_bias=False),
        L.BatchNormalization(),
        L.ReLU(),
    ]


def build_block(workload, index):
    channels = workload.stream_channels
    if workload.name == "convolutional":
        return keras.Sequential([*convolution_layers(channels), *convolution_layers(channels)])
    if workload.name == "transformer" and index % 2 == 0:
        return attention_block((*workload.input_shape[1:-1], channels))
    return keras.Sequential(feed_forward_layers(channels, workload.dropout))


class Remat(L.Wrapper):
    """`keras.remat` around a block."""

    def call(self, x, training=None):
        return keras.remat(lambda x: self.layer(x, training=training))(x)


def build_on_half(blocks, shape):
    """Builds blocks that read one of two streams."""
    for block in blocks:
        block.build((*shape[:-1], shape[-1] // 2))


class WeightsAlone(L.Layer):
    """Reads the blocks' weights, computes nothing with them, and gives each a gradient.

    The least that a first step takes of any layer with these weights.
    """

    def __init__(self, blocks):
        super().__init__()
        self.blocks = blocks

    def build(self, input_shape):
        build_on_half(self.blocks, input_shape)

    def call(self, x):
        @tf.custom_gradient
        def unused(x, *weights):
            return tf.identity(x), lambda dx: (dx, *weights)

        return unused(x, *(tf.convert_to_tensor(w.value) for w in self.trainable_weights))


def reversible_sequential(blocks, shape, batch, memory_mode):
    stack = revkeras.ReversibleSequential(blocks, memory_mode=memory_mode)
    return keras.Sequential([keras.Input(shape, batch_size=batch), stack])


def plain_model(blocks, shape, batch):
    """The same recurrence, written with nothing of revkeras."""
    x = keras.Input(shape, batch_size=batch)
    x0, x1 = keras.ops.split(x, 2, axis=-1)
    for block in blocks:
        x0, x1 = x1, L.Add()([x0, block(x1)])
    return keras.Model(x, L.Concatenate()([x0, x1]))


def build_model(configuration):
    workload, contestant = WORKLOADS[configuration.workload], configuration.contestant
    blocks = [build_block(workload, index) for index in range(configuration.depth)]
    shape, batch = workload.input_shape[1:], configuration.batch
    jit_compile = False
    if contestant in ("keras-default", "keras-jit"):
        model = plain_model(blocks, shape, batch)
        jit_compile = "auto" if contestant == "keras-default" else True
    elif contestant == "weights-alone":
        model = keras.Sequential([keras.Input(shape, batch_size=batch), WeightsAlone(blocks)])
    elif contestant == "keras.remat":
        model = reversible_sequential([Remat(block) for block in blocks], shape, batch, "none")
    else:
        memory_mode = "none" if contestant == "forward" else contestant
        model = reversible_sequential(blocks, shape, batch, memory_mode)
        jit_compile = "auto"
    model.compile(keras.optimizers.SGD(1e-3), "mse", jit_compile=jit_compile)
    return model


def build(configuration):
    keras.utils.set_random_seed(0)
    shape = (configuration.batch, *WORKLOADS[configuration.workload].input_shape[1:])
    x, y = (keras.random.normal(shape, seed=seed) for seed in (0, 1))
    model = build_model(configuration)
    if configuration.contestant == "forward":
        forward = tf.function(lambda x: model(x, training=True), autograph=False)
        return Training(lambda: forward(x), 0)
    weights = 4 * sum(math.prod(weight.shape) for weight in model.trainable_weights)
    return Training(
        lambda: model.train_on_batch(x, y), weights, jit_compiled=bool(model.jit_compile)
    )
