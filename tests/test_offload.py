"""Weights that stay on the host, and come to the device one layer at a time."""

import os
import subprocess
import textwrap

import keras
import pytest
import tensorflow as tf

import revkeras
from tests import blocks
from tests.modes import assert_same, built, in_mode, run_step
from tests.warm import python

pytestmark = pytest.mark.tensorflow("offload on JAX is tested elsewhere")

TWO_DEVICES = """
    import keras, numpy as np, tensorflow as tf
    cpu = tf.config.list_physical_devices("CPU")[0]
    half = tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(cpu, [half, half])
    import revkeras
    L = keras.layers
    HOST, DEVICE = (f"/job:localhost/replica:0/task:0/device:CPU:{i}" for i in range(2))
    x = np.random.default_rng(0).standard_normal((8, 16)).astype("float32")

    def block():
        return keras.Sequential([L.Dense(16), L.BatchNormalization(), L.Dropout(0.2), L.Dense(8)])

    def model_of(layers, **options):
        stack = revkeras.ReversibleSequential(layers, **options)
        return keras.Sequential([keras.Input((16,)), stack, L.Dense(1)])

    def devices(variables):
        return {v.value.device for v in variables}
"""


def run_on_two_devices(code):
    """Runs code in a process whose CPU is two devices: a host, and one that computes."""
    subprocess.run(
        [*python(), "-c", textwrap.dedent(TWO_DEVICES) + textwrap.dedent(code)],
        check=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        timeout=300,
    )


@pytest.mark.parametrize("kind", ["dense", "dropout", "batch_norm", "regularized", "frozen"])
@pytest.mark.parametrize("graph", [True, False])
def test_same_as_plain_training(kind, graph):
    x = tf.random.stateless_normal((6, 8), (0, 1))
    layers = [getattr(blocks, "dense" if kind == "frozen" else kind)(4) for _ in range(4)]
    stack = built(revkeras.ReversibleSequential(layers, offload="host"), x)
    stack.layers[1].trainable = kind != "frozen"
    found = run_step(in_mode(stack, "reversible"), x, graph=graph, training=True)
    assert_same(found, run_step(in_mode(stack, "none"), x, graph=graph, training=True))


def test_one_layer_in_several_places():
    x = tf.random.stateless_normal((6, 8), (0, 1))
    shared = blocks.batch_norm(4)
    layers = [shared, blocks.dense(4), shared]
    stack = built(revkeras.ReversibleSequential(layers, offload="host"), x)
    found = run_step(in_mode(stack, "reversible"), x, training=True)
    assert_same(found, run_step(in_mode(stack, "none"), x, training=True))


def test_gradients_of_gradients():
    x = tf.random.stateless_normal((2, 8), (0, 1))
    stack = built(revkeras.ReversibleSequential([blocks.dense(4)] * 2, offload="host"), x)

    def second(layer):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = tf.reduce_sum(layer(x) ** 2)
            first = tf.reduce_sum(inner.gradient(y, x) ** 2)
        return outer.gradient(first, layer.trainable_variables[0].value)

    tf.debugging.assert_near(second(stack), second(in_mode(stack, "none")), rtol=1e-4)


def test_configuration():
    stack = revkeras.ReversibleSequential([blocks.dense(4)], offload="host")
    assert keras.layers.deserialize(keras.layers.serialize(stack)).offload == "host"
    assert revkeras.ReversibleSequential([blocks.dense(4)]).offload is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offload": "cpu"}, "`offload`.*None or 'host'.*offload='cpu'"),
        ({"offload": True}, "offload=True"),
        ({"offload": "host", "memory_mode": "none"}, "memory_mode='none'.*keeps all weights"),
        ({"offload": "host", "memory_mode": "checkpoint"}, "Use memory_mode='reversible'"),
    ],
)
def test_bad_values(options, message):
    with pytest.raises(ValueError, match=message):
        revkeras.ReversibleSequential([blocks.dense(4)], **options)


@pytest.mark.parametrize("optimizer", ["FusedUpdate(SGD(0.1, momentum=0.9))", "Adam(0.1)"])
def test_between_two_devices(optimizer):
    """Weights and slots stay on the host, and the model learns what it learns on one device."""
    run_on_two_devices(
        f"""
        from keras.optimizers import SGD, Adam
        from revkeras import FusedUpdate

        def train(**options):
            keras.utils.set_random_seed(0)
            with tf.device(DEVICE):
                model = model_of([block() for _ in range(4)], **options)
                optimizer = {optimizer}
                optimizer.build(model.trainable_variables)
                model.compile(optimizer, "mse")
                losses = model.fit(x, x[:, :1], batch_size=4, epochs=3, verbose=0).history["loss"]
            return model, losses

        model, losses = train(offload="host")
        slots = {{v.value.device for v in model.optimizer.variables if v.shape == (16, 8)}}
        assert devices(model.layers[0].weights) == slots == {{HOST}}
        assert devices(model.layers[1].weights) == {{DEVICE}}
        with tf.device(DEVICE):
            assert model(x).device == DEVICE
        plain, expected = train()
        assert devices(plain.layers[0].weights) == {{DEVICE}}
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
        """
    )


def test_slots_that_a_step_makes_are_on_the_host():
    run_on_two_devices(
        """
        with tf.device(DEVICE):
            model = model_of([block() for _ in range(2)], offload="host")
            model.compile(revkeras.FusedUpdate(keras.optimizers.Adam()), "mse")
            model.fit(x, x[:, :1], verbose=0)
        assert {v.value.device for v in model.optimizer.variables if v.shape == (16, 8)} == {HOST}
        """
    )


def test_a_loaded_model_has_its_weights_on_the_host(tmp_path):
    run_on_two_devices(
        f"""
        path = r"{tmp_path / "model.keras"}"
        with tf.device(DEVICE):
            model = model_of([block(), revkeras.layers.ActNorm(), block()], offload="host")
            model(x, training=True)
            model.save(path)
            loaded = keras.saving.load_model(path)
            np.testing.assert_allclose(loaded(x), model(x), rtol=1e-5)
        assert devices(loaded.layers[0].weights) == {{HOST}}
        """
    )


def test_a_block_built_on_the_device_is_refused():
    run_on_two_devices(
        """
        with tf.device(DEVICE):
            built = L.Dense(8)
            built.build((None, 8))
            try:
                model_of([built], offload="host")
            except ValueError as error:
                assert "was built on a device" in str(error) and "CPU:0" in str(error)
            else:
                raise AssertionError("not refused")
        """
    )


def test_weights_leave_the_host_one_step_ahead():
    """Those of a step not before the step before it begins, forwards and back."""
    run_on_two_devices(
        """
        from revkeras._engine.tensorflow.residence import OnHost
        events, fetches = [], []

        def noted(event, tensor):
            def note(value):
                events.append(event)
                return value
            result = tf.numpy_function(note, [tensor], tensor.dtype, stateful=False)
            result.set_shape(tensor.shape)
            return result

        class Noted(OnHost):
            def fetch(self, owners, values, gate):
                first, *rest = super().fetch(owners, values, gate)
                fetches.append(len(fetches))
                with self.place():
                    return [noted(fetches[-1], first), *rest]

        @tf.custom_gradient
        def step(y):
            return noted("step", y), lambda dy: dy

        n = 6
        stack = revkeras.ReversibleSequential(
            [L.Dense(8, activation="tanh") for _ in range(n)],
            lambda x, fx: step(x + fx),
            lambda y, fx: noted("step", y - fx),
            offload="host",
            check_inverse=False,
        )
        stack.residence = Noted()

        @tf.function
        def gradients(x):
            with tf.GradientTape() as tape:
                y = tf.reduce_sum(stack(x) ** 2)
            return tape.gradient(y, [v.value for v in stack.trainable_variables])

        with tf.device(DEVICE):
            stack.build((None, 16))
            function = gradients.get_concrete_function(tf.constant(x))
            events.clear()
            function(tf.constant(x))
        ran = [e for e in events if e != "step"]
        assert sorted(ran) == fetches == list(range(2 * n)), events
        for k in fetches:
            done = events[: events.index(k)].count("step")
            before = max(0, k - 1) if k < n else n + max(0, k - n - 1)
            assert done >= before, (k, done, events)
        """
    )
