"""Residual models to convert: functional, sequential, subclassed, with masks and caches."""

import keras
import numpy as np

from tests.differentiation import differentiated

L = keras.layers


@keras.saving.register_keras_serializable("tests")
class Block(L.Layer):
    """A residual block with dropout, a mask, a cache and a loss."""

    def __init__(self, width=4, rate=0.0, penalty=0.0, **kwargs):
        super().__init__(**kwargs)
        self.width, self.rate, self.penalty = width, rate, penalty
        self.dense = L.Dense(width, activation="tanh", dtype=self.dtype_policy)
        self.norm = L.BatchNormalization(momentum=0.7, dtype=self.dtype_policy)
        self.dropout = L.Dropout(rate, dtype=self.dtype_policy)

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build(shape)

    def call(self, x, scale=None, cache=None, training=None):
        y = self.dropout(self.norm(self.dense(x), training=training), training=training)
        y = y if scale is None else y * scale
        if self.penalty:
            self.add_loss(self.penalty * keras.ops.mean(keras.ops.square(y)))
        if cache is None:
            return x + y
        return x + y + cache, cache + 1

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        own = {"width": self.width, "rate": self.rate, "penalty": self.penalty}
        return {**super().get_config(), **own}


def functional(blocks=4, **options):
    """Blocks that get the same second input."""
    x, scale = keras.Input((4,), name="x"), keras.Input((1,), name="scale")
    y = L.Dense(4, name="first")(x)
    for i in range(blocks):
        y = Block(name=f"block_{i}", **options)(y, scale=scale)
    return keras.Model({"x": x, "scale": scale}, L.Dense(3, name="last")(y), name="functional")


def sequential(blocks=4, **options):
    layers = [Block(name=f"block_{i}", **options) for i in range(blocks)]
    return keras.Sequential([keras.Input((4,)), *layers, L.Dense(3)])


def inlined(blocks=4, rate=0.0, penalty=0.0):
    """Blocks of two additions each, which are the model's own operations."""
    regularizer = keras.regularizers.L2(penalty) if penalty else None
    x = keras.Input((4,))
    y = L.Dense(4)(x)
    for _ in range(blocks):
        h = L.Dense(6, activation="tanh", activity_regularizer=regularizer)(y)
        h = L.BatchNormalization(momentum=0.7)(h)
        y = L.Add()([L.Dense(4)(h), y])
        y = y + L.Dropout(rate)(L.Dense(4, activation="tanh")(y))
    return keras.Model(x, L.Dense(3)(y))


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    """Blocks in a loop, with caches if it is given some."""

    def __init__(self, n_blocks=4, rate=0.0, **kwargs):
        super().__init__(**kwargs)
        self.n_blocks, self.rate = n_blocks, rate
        self.first = L.Dense(4)
        self.blocks = [Block(rate=rate, name=f"block_{i}") for i in range(n_blocks)]

    def build(self, shape):
        self.first.build(shape)
        for block in self.blocks:
            block.build((*shape[:-1], 4))
        self.built = True

    def call(self, x, caches=None, training=None):
        x = self.first(x)
        if caches is None:
            for block in self.blocks:
                x = block(x, training=training)
            return x
        after = []
        for block, cache in zip(self.blocks, caches):
            x, cache = block(x, cache=cache, training=training)
            after.append(cache)
        return x, after

    def get_config(self):
        return {**super().get_config(), "n_blocks": self.n_blocks, "rate": self.rate}


def subclassed(blocks=4, rate=0.0, **_):
    model = Subclassed(blocks, rate)
    model(np.zeros((1, 4), "float32"))
    return model


X = np.random.default_rng(0).standard_normal((6, 4)).astype("float32")
DATA = {
    "functional": {"x": X, "scale": np.linspace(0.5, 1, 6, dtype="float32")[:, None]},
    "sequential": X,
    "subclassed": X,
    "inlined": X,
}
BUILDERS = {
    "functional": functional,
    "sequential": sequential,
    "subclassed": subclassed,
    "inlined": inlined,
}


def gradients(model, data):
    """A training step in a graph: outputs, losses, gradients and states; states stay."""
    data = keras.tree.map_structure(keras.ops.convert_to_tensor, data)
    found = differentiated(model, [data], {"training": True}, graph=True, jit_compile=False)
    return [[np.array(x) for x in keras.tree.flatten(part) if x is not None] for part in found]


def assert_close(found, expected, tolerance=1e-4):
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) == len(theirs)
        scale = max((np.abs(x).max(initial=0.0) for x in theirs), default=0.0) or 1.0
        for a, b in zip(ours, theirs):
            np.testing.assert_allclose(a, b, atol=tolerance * scale, rtol=tolerance)
