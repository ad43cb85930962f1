"""Blocks of every kind that a stack may hold, each made for a number of channels."""

import keras

L = keras.layers


def dense(channels):
    return keras.Sequential(
        [L.LayerNormalization(), L.Dense(2 * channels, activation="gelu"), L.Dense(channels)]
    )


def dropout(channels):
    return keras.Sequential([L.Dense(channels, activation="relu"), L.Dropout(0.5)])


def batch_norm(channels):
    return keras.Sequential(
        [L.Dense(channels), L.BatchNormalization(momentum=0.7), L.Activation("tanh")]
    )


def regularized(channels):
    return L.Dense(channels, kernel_regularizer="l2", activity_regularizer="l1")


def convolution(channels):
    return keras.Sequential(
        [
            L.Conv2D(channels, 3, padding="same"),
            L.BatchNormalization(),
            L.Dropout(0.2),
            L.ReLU(),
        ]
    )


def noise(channels):
    return keras.Sequential([L.GaussianNoise(0.3), L.Dense(channels), L.SpatialDropout1D(0.4)])


def functional(channels):
    inputs = keras.Input((channels,))
    x = L.Dense(channels, activation="tanh")(inputs)
    return keras.Model(inputs, L.Add()([L.Dropout(0.3)(x), inputs]))


def frozen(channels):
    block = keras.Sequential([L.Dense(channels), L.BatchNormalization(), L.Dense(channels)])
    block.layers[0].trainable = False
    return block


@keras.saving.register_keras_serializable("tests")
class Attention(L.Layer):
    """Self-attention with dropout."""

    def __init__(self, channels, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.norm = L.LayerNormalization(dtype=self.dtype_policy)
        self.attention = L.MultiHeadAttention(2, channels, dropout=0.2, dtype=self.dtype_policy)
        self.supports_masking = True

    def build(self, shape):
        self.norm.build(shape)
        self.attention.build(shape, shape)

    def call(self, x):
        x = self.norm(x)
        return self.attention(x, x)

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}


def attention(channels):
    return Attention(channels)


KINDS = {
    "attention": attention,
    "batch_norm": batch_norm,
    "convolution": convolution,
    "dense": dense,
    "dropout": dropout,
    "frozen": frozen,
    "functional": functional,
    "noise": noise,
    "regularized": regularized,
}


def shape(kind, size):
    """The input's axes between batch and channels."""
    ranks = {"attention": 1, "noise": 1, "convolution": 2}
    return (size,) * ranks.get(kind, 0)
