"""Data-parallel training on several devices of one process."""

import os
import subprocess
import textwrap

import pytest

from tests.warm import python

pytestmark = pytest.mark.tensorflow("tf.distribute")


def run_on_two_devices(code):
    """Runs code in a process of its own, with `mirrored`, a strategy of two devices."""
    start = """
        import keras, numpy as np, tensorflow as tf
        cpu = tf.config.list_physical_devices("CPU")[0]
        half = tf.config.LogicalDeviceConfiguration()
        tf.config.set_logical_device_configuration(cpu, [half, half])
        import revkeras
        L = keras.layers
        x = np.random.default_rng(0).standard_normal((16, 8)).astype("float32")
        mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        assert mirrored.num_replicas_in_sync == 2
    """
    subprocess.run(
        [*python(), "-c", textwrap.dedent(start) + textwrap.dedent(code)],
        check=True,
        env={**os.environ, "PYTHONPATH": os.getcwd(), "TF_CPP_MIN_LOG_LEVEL": "2"},
    )


def test_mirrored_strategy_on_two_logical_devices():
    """Each replica gets its half of the batch, and the weights are those of one device."""
    code = """
        def train(strategy, mode):
            keras.utils.set_random_seed(0)
            with strategy.scope():
                stack = [
                    keras.Sequential([L.LayerNormalization(), L.Dense(4, activation="tanh")])
                    for _ in range(3)
                ]
                model = keras.Sequential(
                    [keras.Input((8,)), revkeras.ReversibleSequential(stack, memory_mode=mode)]
                )
                model.compile(keras.optimizers.SGD(0.1), "mse")
                model.optimizer.build(model.trainable_variables)
            model.fit(x, x, batch_size=8, epochs=2, shuffle=False, verbose=0)
            return model.get_weights()

        def stateful(strategy, mode):
            keras.utils.set_random_seed(0)
            with strategy.scope():
                stack = [
                    keras.Sequential([L.Dense(4), L.BatchNormalization(), L.Dropout(0.5)])
                    for _ in range(3)
                ]
                model = keras.Sequential(
                    [keras.Input((8,)), revkeras.ReversibleSequential(stack, memory_mode=mode)]
                )
                model.compile(keras.optimizers.SGD(0.1), "mse")
                model.optimizer.build(model.trainable_variables)
            before = model.get_weights()
            model.fit(x, x, batch_size=8, shuffle=False, verbose=0)
            assert all(np.any(a != b) for a, b in zip(before, model.get_weights()))
            return model.get_weights()

        alone = tf.distribute.get_strategy()
        expected = [*train(alone, "none"), *stateful(mirrored, "none")]
        for mode in "reversible", "checkpoint":
            found = [*train(mirrored, mode), *stateful(mirrored, mode)]
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    """
    run_on_two_devices(code)


def test_replicas_that_communicate_in_a_replayed_block_are_refused_by_name():
    """Where nothing is replayed, and eagerly, they may: all batches are normalized as one."""
    code = """
        class Averaging(L.Layer):
            def call(self, x):
                replica = tf.distribute.get_replica_context()
                if replica is None:  # while the model is built
                    return x
                return x - replica.all_reduce("mean", tf.reduce_mean(x, axis=0))

            def compute_output_shape(self, shape):
                return shape

        def normalizing():
            return L.BatchNormalization(synchronized=True, name="synchronized")

        def train(make, eager):
            keras.utils.set_random_seed(0)
            with mirrored.scope():
                model = keras.Sequential([keras.Input((8,)), make()])
                model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=eager)
            model.fit(x, x, batch_size=8, shuffle=False, verbose=0)
            return model.get_weights()

        def stack(block, mode):
            return lambda: revkeras.ReversibleSequential(
                [block() for _ in range(2)], memory_mode=mode
            )

        expected = train(stack(normalizing, "none"), eager=False)
        for mode in "reversible", "checkpoint":
            for a, b in zip(train(stack(normalizing, mode), eager=True), expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)

        def averaging():
            return Averaging(name="averaging")

        refused = [
            ("synchronized", stack(normalizing, "reversible")),
            ("synchronized", lambda: revkeras.Checkpoint(normalizing())),
            ("averaging", stack(averaging, "checkpoint")),
        ]
        for name, make in refused:
            try:
                train(make, eager=False)
            except ValueError as error:
                for part in f"Block '{name}'", "merge_call", "memory_mode='none'":
                    assert part in str(error), error
            else:
                raise AssertionError(name)
    """
    run_on_two_devices(code)
