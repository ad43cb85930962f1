"""Activation memory does not grow with depth: one fresh process per figure, wide margins."""

import gc
import os
import subprocess
import sys
import textwrap
import weakref

import keras
import pytest
import tensorflow as tf

import revkeras
from revkeras.memory import ENVIRONMENT, measure_steps

ATTENTION = textwrap.dedent(
    """
    import keras, numpy as np, revkeras
    from revkeras.memory import measure_steps
    L = keras.layers

    def block():
        x = keras.Input((1024, 16))
        return keras.Model(x, L.MultiHeadAttention(4, 4)(x, x))

    stack = revkeras.ReversibleSequential([block() for _ in range(2)])
    model = keras.Sequential([keras.Input((1024, 32)), stack])
    model.compile("sgd", "mse")
    x = np.ones((1, 1024, 32), "float32")
    print(measure_steps(lambda: model.train_on_batch(x, x), steps=3).activation_bytes)
    """
)

CODE = textwrap.dedent(
    """
    import sys, keras, numpy as np, revkeras
    from revkeras.memory import measure_steps
    L = keras.layers
    mode, depth = sys.argv[1], int(sys.argv[2])

    def block():
        return keras.Sequential(
            [L.Dense(256), L.BatchNormalization(), L.ReLU(), L.Dropout(0.2), L.Dense(64)]
        )

    stack = revkeras.ReversibleSequential([block() for _ in range(depth)], memory_mode=mode)
    model = keras.Sequential([keras.Input((128,)), stack])
    model.compile("sgd", "mse")
    x = np.ones((2048, 128), "float32")
    cost = measure_steps(lambda: model.train_on_batch(x, x), steps=3)
    print(cost.activation_bytes)
    """
)


def activation_bytes(code, *arguments):
    """What a step of the code takes, in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            **ENVIRONMENT,
            "PYTHONPATH": os.getcwd(),
            "TF_CPP_MIN_LOG_LEVEL": "2",
        },
    )
    return int(done.stdout.split()[-1])


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_depth():
    """A hidden tensor is 2 MiB, a mask 2 MiB, a stream half a MiB."""
    growth = {
        mode: activation_bytes(CODE, mode, 24) - activation_bytes(CODE, mode, 8)
        for mode in ("reversible", "checkpoint", "none")
    }
    assert growth["none"] > 16 * 5 * 2**20
    assert growth["checkpoint"] < 0.3 * growth["none"]
    assert growth["reversible"] < 0.1 * growth["none"]


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's /proc")
def test_attention_holds_three_matrices_of_scores():
    """It was four: Grappler multiplied another one by the scores' factor."""
    assert activation_bytes(ATTENTION) < 3.6 * 4 * 1024**2 * 4


@pytest.mark.parametrize("kind", ["reversible", "checkpoint", "Checkpoint"])
def test_a_model_is_forgotten(kind):
    """TensorFlow's registry of gradients would keep it: every model of a process, for ever.

    The optimizers of Keras have it keep the graph of each training step, with any model.
    """

    def blocks_of_a_model():
        blocks = [keras.layers.Dense(2) for _ in range(2)]
        if kind == "Checkpoint":
            layer = revkeras.Checkpoint(keras.Sequential(blocks))
        else:
            layer = revkeras.ReversibleSequential(blocks, memory_mode=kind)
        model, x = keras.Sequential([keras.Input((4,)), layer]), tf.ones((2, 4))
        model.predict(x, verbose=0)

        @tf.function
        def gradients(x):
            with tf.GradientTape() as tape:
                y = model(x, training=True)
            return tape.gradient(y, [v.value for v in model.trainable_variables])

        assert len(gradients(x)) == 4
        return [weakref.ref(block) for block in blocks]

    kept = blocks_of_a_model()
    keras.utils.clear_session()
    gc.collect()
    assert [found() for found in kept] == [None, None]


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's /proc")
def test_a_process_whose_pools_hide_memory_is_told(monkeypatch):
    """TensorFlow keeps freed tensors where it uses oneDNN, and every step seemed to take none."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.delenv("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", raising=False)
    with pytest.warns(UserWarning, match="too low.* TF_ONEDNN_USE_SYSTEM_ALLOCATOR=true in its"):
        measure_steps(lambda: None, steps=1)
