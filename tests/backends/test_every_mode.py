"""Every memory mode computes what plain differentiation does."""

import keras
import numpy as np
import pytest

import revkeras
from revkeras import ReversibleSequential, couplings
from tests import blocks
from tests.modes import assert_modes_agree, assert_same, run_step

L = keras.layers


def values(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("kind", sorted(blocks.KINDS))
def test_blocks(kind, graph):
    layer = ReversibleSequential([blocks.KINDS[kind](4) for _ in range(3)])
    x = values(3, *blocks.shape(kind, 4), 8)
    assert_modes_agree(layer, x, training=True, graph=graph)


def test_outside_of_training():
    layer = ReversibleSequential([blocks.batch_norm(4), blocks.dropout(4), L.Identity()])
    assert_modes_agree(layer, values(3, 8), training=False)


COUPLINGS = {
    "affine": lambda: couplings.Affine(),
    "leapfrog": lambda: couplings.Leapfrog(),
    "momentum": lambda: couplings.Momentum(0.9),
}


@pytest.mark.parametrize("name", sorted(COUPLINGS))
def test_couplings(name):
    coupling = COUPLINGS[name]()
    units = 4 * coupling.n_updates
    layers = [L.Dense(units, activation="tanh") for _ in range(4)]
    assert_modes_agree(ReversibleSequential(layers, coupling=coupling), values(3, 8))


@pytest.mark.parametrize("graph", [False, True])
def test_a_block_that_stands_twice(graph):
    shared = blocks.batch_norm(4)
    layer = ReversibleSequential([shared, L.Dense(4), shared, L.Identity()])
    assert_modes_agree(layer, values(3, 8), training=True, graph=graph)


def test_two_streams():
    layer = ReversibleSequential([L.Dense(4, activation="gelu") for _ in range(3)])
    assert_modes_agree(layer, values(3, 4), values(3, 4, seed=1))


def test_layers_with_an_inverse():
    layers = [
        revkeras.layers.ActNorm(),
        revkeras.layers.InvertibleDense(),
        L.Dense(4, activation="tanh"),
        revkeras.layers.Permute(seed=1),
        L.Dense(4, activation="tanh"),
    ]
    layer = ReversibleSequential(layers, coupling="additive")
    assert_modes_agree(layer, values(6, 8), return_log_det=True)


def test_tensors_that_leave():
    layers = [
        L.Conv2D(4, 3, padding="same"),
        revkeras.layers.SpaceToDepth(),
        revkeras.layers.Split(),
        L.Conv2D(8, 3, padding="same"),
    ]
    layer = ReversibleSequential(layers)
    assert_modes_agree(layer, values(2, 4, 4, 8))


@keras.saving.register_keras_serializable("tests.backends")
class Scaled(L.Layer):
    """Takes a further argument, and returns a further output."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = L.Dense(4)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x, scale=None):
        y = self.dense(x) * scale
        return y, keras.ops.mean(y)

    def compute_output_shape(self, shape, **_):
        return shape, ()


def test_arguments_and_further_outputs():
    layer = ReversibleSequential([Scaled() for _ in range(3)])
    scale = keras.ops.convert_to_tensor(values(3, 4, seed=2))
    assert_modes_agree(layer, values(3, 8), scale=scale)


def test_masks():
    layer = ReversibleSequential([blocks.attention(4) for _ in range(2)])
    mask = keras.ops.convert_to_tensor(np.arange(5) < np.array([[3], [5]]))
    assert_modes_agree(layer, values(2, 5, 8), mask=mask)


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    layer = ReversibleSequential([blocks.dense(4) for _ in range(3)])
    assert_modes_agree(layer, values(4, 8), tolerance=0.05)


@pytest.mark.parametrize("mode", ["reversible", "checkpoint"])
def test_inverse(mode):
    layer = ReversibleSequential([blocks.batch_norm(4) for _ in range(3)], memory_mode=mode)
    x = values(3, 8)
    found = keras.ops.convert_to_numpy(layer.inverse(layer(x)))
    np.testing.assert_allclose(found, x, atol=1e-5)


@pytest.mark.parametrize("kind", ["batch_norm", "dropout", "functional"])
def test_checkpoint(kind):
    plain, x = blocks.KINDS[kind](8), values(3, 8)
    plain(x)
    kept = revkeras.Checkpoint(keras.models.clone_model(plain))
    kept(x)
    for a, b in zip(kept.variables, plain.variables, strict=True):
        a.assign(b.value)
    assert_same(run_step(kept, x, training=True), run_step(plain, x, training=True))
