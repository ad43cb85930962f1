"""Data-parallel training on several devices of one process."""

import os
import subprocess
import textwrap

from tests.warm import python


def test_mirrored_strategy_on_two_logical_devices():
    """Each replica gets its half of the batch, and the weights are those of one device."""
    code = """
        import keras, numpy as np, tensorflow as tf
        cpu = tf.config.list_physical_devices("CPU")[0]
        half = tf.config.LogicalDeviceConfiguration()
        tf.config.set_logical_device_configuration(cpu, [half, half])
        import revkeras
        L = keras.layers
        x = np.random.default_rng(0).standard_normal((16, 8)).astype("float32")

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
            before = model.get_weights()
            model.fit(x, x, batch_size=8, shuffle=False, verbose=0)
            assert all(np.any(a != b) for a, b in zip(before, model.get_weights()))
            return model.get_weights()

        mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        assert mirrored.num_replicas_in_sync == 2
        alone = tf.distribute.get_strategy()
        expected = [*train(alone, "none"), *stateful(mirrored, "none")]
        for mode in "reversible", "checkpoint":
            found = [*train(mirrored, mode), *stateful(mirrored, mode)]
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    """
    subprocess.run(
        [*python(), "-c", textwrap.dedent(code)],
        check=True,
        env={**os.environ, "PYTHONPATH": os.getcwd(), "TF_CPP_MIN_LOG_LEVEL": "2"},
    )
