"""Activation memory does not grow with depth: one fresh process per figure, wide margins."""

import gc
import os
import subprocess
import textwrap
import weakref

import keras
import pytest
import tensorflow as tf

import revkeras
from revkeras.memory import ENVIRONMENT, measure_steps
from tests.warm import python

pytestmark = pytest.mark.tensorflow("memory of TensorFlow's steps")

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

GROWTH = textwrap.dedent(
    """
    import sys, keras, numpy as np, revkeras
    from revkeras.memory import measure_steps
    L = keras.layers
    kind, is_eager, mode = sys.argv[1], sys.argv[2] == "eager", sys.argv[3]
    shape = {
        "dense": (2048, 128), "convolutional": (32, 32, 32, 16), "attention": (32, 64, 64)
    }[kind]

    def dense():
        return [L.Dense(64), L.BatchNormalization(), L.ReLU(), L.Dropout(0.2), L.Dense(64)]

    def convolutional():
        convolution = [L.Conv2D(8, 3, padding="same") for _ in range(2)]
        return [convolution[0], L.BatchNormalization(), L.ReLU(), convolution[1]]

    def attention():
        x = keras.Input((64, 32))
        return [keras.Model(x, L.MultiHeadAttention(4, 8)(x, x))]

    def activation_bytes(mode, depth):
        blocks = [keras.Sequential(globals()[kind]()) for _ in range(depth)]
        stack = revkeras.ReversibleSequential(blocks, memory_mode=mode)
        model = keras.Sequential([keras.Input(shape[1:]), stack])
        model.compile("sgd", "mse", run_eagerly=is_eager)
        model.optimizer.build(model.trainable_variables)  # or the step is traced twice
        x = np.ones(shape, "float32")
        return measure_steps(lambda: model.train_on_batch(x, x), steps=3).activation_bytes

    def growth(mode, few, many):
        return (activation_bytes(mode, many) - activation_bytes(mode, few)) / (many - few)

    print(growth(mode, 4, 12) / growth("none", 2, 6))
    """
)


def figure(code, *arguments):
    """What the code prints, in a fresh process."""
    done = subprocess.run(
        [*python(**ENVIRONMENT), "-c", code, *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            **ENVIRONMENT,
            "TF_NUM_INTEROP_THREADS": "1",  # so that operations have one order
            "PYTHONPATH": os.getcwd(),
            "TF_CPP_MIN_LOG_LEVEL": "2",
        },
    )
    return float(done.stdout.split()[-1])


needs_proc = pytest.mark.skipif(
    not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's /proc"
)


@needs_proc
@pytest.mark.parametrize("kind", ["dense", "convolutional", "attention"])
@pytest.mark.parametrize("execution", ["graph", "eager"])
def test_memory_does_not_grow_with_depth(kind, execution):
    """The gradients of a block's weights, which the optimizer waits for, are half of the 1%."""
    assert figure(GROWTH, kind, execution, "reversible") < 0.01


@needs_proc
def test_memory_of_a_checkpointed_stack_grows():
    """So that the test above can fail."""
    assert figure(GROWTH, "dense", "graph", "checkpoint") > 0.02


@needs_proc
def test_attention_holds_three_matrices_of_scores():
    """It was four: Grappler multiplied another one by the scores' factor."""
    assert figure(ATTENTION) < 3.6 * 4 * 1024**2 * 4


@pytest.fixture
def _new_objects():
    """What was there before is none of `gc.get_objects()`: to look through all takes seconds."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_new_objects")
@pytest.mark.parametrize("mode", ["reversible", "checkpoint"])
@pytest.mark.parametrize("coupling", ["additive", "affine", "leapfrog"])
def test_eager_steps_leave_no_tensors_behind(mode, coupling):
    """TensorFlow never frees a tensor that it finds to be the gradient of two."""
    blocks = [keras.layers.Dense(4 if coupling == "affine" else 2) for _ in range(3)]
    stack = revkeras.ReversibleSequential(blocks, coupling=coupling, memory_mode=mode)
    x = tf.ones((5, 4))

    def tensors_after_a_step():
        with tf.GradientTape() as tape:
            y = stack(x)
        assert len(tape.gradient(y, stack.trainable_variables)) == 6
        del tape, y
        gc.collect()
        return sum(isinstance(found, tf.Tensor) for found in gc.get_objects())

    tensors_after_a_step()
    assert tensors_after_a_step() == tensors_after_a_step()


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


@needs_proc
def test_a_process_whose_pools_hide_memory_is_told(monkeypatch):
    """TensorFlow keeps freed tensors where it uses oneDNN, and every step seemed to take none."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.delenv("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", raising=False)
    with pytest.warns(UserWarning, match="too low.* TF_ONEDNN_USE_SYSTEM_ALLOCATOR=true in its"):
        measure_steps(lambda: None, steps=1)
