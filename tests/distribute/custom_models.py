"""Models with several optimizers, and layers that start; `customized.py` runs it."""

from tests.distribute.together import batches, equal_on_all, folder, strategy  # isort: skip

import keras
import numpy as np
import pytest
import tensorflow as tf

import revkeras
from revkeras.distribute import CheckpointError, ZeroStrategy
from revkeras.layers import ActNorm
from tests.compiling import compiled

L = keras.layers
PARTS = "generator", "discriminator"


class GAN(keras.Model):
    """As in Keras's guide: an optimizer for each part, and no `call()`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.generator = part("generator", 10, 9, 3)
        self.discriminator = part("discriminator", 3, 11, 1)
        self.g_loss = keras.metrics.Mean("g_loss")

    @property
    def metrics(self):
        return [self.g_loss]

    def compile(self, d_optimizer, g_optimizer):
        super().compile()
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer

    def train_step(self, data):
        noise, real = data
        discriminator, generator = self.discriminator, self.generator
        with tf.GradientTape() as tape:
            d_loss = loss(discriminator(real), 1) + loss(discriminator(generator(noise)), 0)
        weights = discriminator.trainable_weights
        self.d_optimizer.apply_gradients(zip(tape.gradient(d_loss, weights), weights))
        with tf.GradientTape() as tape:
            g_loss = loss(discriminator(generator(noise)), 1)
        weights = generator.trainable_weights
        self.g_optimizer.apply_gradients(zip(tape.gradient(g_loss, weights), weights))
        self.g_loss.update_state(g_loss)
        return {"d_loss": d_loss, "g_loss": self.g_loss.result()}


def part(name, n_in, width, n_out):
    layers = [L.Dense(width, "tanh", name=f"{name}_1"), L.Dense(n_out, name=f"{name}_2")]
    return keras.Sequential([keras.Input((n_in,)), *layers], name=name)


def loss(logits, label):
    label = keras.ops.full_like(logits, label)
    return keras.ops.mean(keras.ops.binary_crossentropy(label, logits, from_logits=True))


def several_optimizers():
    """A GAN ends with the weights of one process, in files and after a restored checkpoint too."""
    alone = GAN()
    for stage in 2, 3:
        with (by := ZeroStrategy(stage, shard_bytes=100)).scope():
            model = GAN()
            model.compile(*optimizers(by.optimizer))
        for part in PARTS:
            getattr(alone, part).set_weights(getattr(model, part).get_weights())
        alone.compile(*optimizers())
        alone.jit_compile = False
        model.save(folder / "gan.keras")  # with optimizers that are not built yet
        expected = alone.fit(batches.take(4), verbose=0).history
        found = model.fit(by.shard(batches.take(4)), verbose=0).history
        for name in expected:
            np.testing.assert_allclose(equal_on_all(found[name]), expected[name], rtol=1e-4)
        close(model, alone)
    model.save(folder / "gan.keras")
    close(keras.models.load_model(folder / "gan.keras", {"GAN": GAN}), alone)
    by.save_checkpoint(folder / "checkpoints")
    by.models.clear()
    with by.scope():
        again = GAN()
        again.compile(*optimizers(by.optimizer))
    with pytest.raises(CheckpointError, match="`d_optimizer`, `g_optimizer` will update"):
        by.restore_checkpoint(folder / "checkpoints")
    again.d_optimizer.build(again.discriminator.trainable_variables)
    again.g_optimizer.build(again.generator.trainable_variables)
    assert by.restore_checkpoint(folder / "checkpoints") == 4
    alone.fit(batches.take(2), verbose=0)
    again.fit(by.shard(batches.take(2)), verbose=0)
    close(again, alone)


def foreign_optimizers():
    """An optimizer in an attribute that the strategy did not make is refused."""
    with strategy.scope():
        model = GAN()
        model.compile(strategy.optimizer(keras.optimizers.SGD()), keras.optimizers.SGD())
    with pytest.raises(ValueError, match="`g_optimizer`: expected one that the strategy made"):
        model.fit(strategy.shard(batches), verbose=0)


def optimizers(made_by=lambda optimizer: optimizer):
    """For the discriminator and the generator."""
    return made_by(keras.optimizers.Adam(1e-2, beta_1=0.5)), made_by(keras.optimizers.Muon(1e-2))


def close(found, expected):
    for part in PARTS:
        weights = (getattr(model, part).get_weights() for model in (found, expected))
        for a, b in zip(*weights):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def starting():
    """`ActNorm` starts from the global batch, wherever it stands, and once."""
    sharding = ZeroStrategy(3, shard_bytes=100)

    def build():
        blocks = [keras.Sequential([ActNorm(), L.Dense(4, "tanh")]), ActNorm(), L.Dense(4)]
        inner = keras.Sequential([L.Dense(8, "tanh"), ActNorm()])
        stack = revkeras.ReversibleSequential(blocks)
        layers = [L.Dense(8), ActNorm(), stack, revkeras.Checkpoint(inner), L.Dense(3)]
        return keras.Sequential([keras.Input((10,)), *layers])

    alone = build()
    with sharding.scope():
        model = compiled(build(), sharding.optimizer(keras.optimizers.SGD(0.1)))
    alone.set_weights(model.get_weights())
    compiled(alone, keras.optimizers.SGD(0.1), jit_compile=False)
    for data in batches.take(3), batches.skip(3).take(3):
        alone.fit(data, verbose=0)
        model.fit(sharding.shard(data), verbose=0)
        for a, b in zip(model.get_weights(), alone.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
