"""Configs, files, and SavedModels that processes without revkeras load."""

import os
import subprocess
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

import revkeras
from tests import blocks
from tests.warm import python

L = keras.layers


@keras.saving.register_keras_serializable("tests")
def scaled_forward(x, fx):
    return 0.5 * x + fx


@keras.saving.register_keras_serializable("tests")
def scaled_inverse(y, fx):
    return (y - fx) * 2


def model(mode="reversible"):
    shared = blocks.dropout(4)
    stack = revkeras.ReversibleSequential(
        [shared, blocks.batch_norm(4), shared], scaled_forward, scaled_inverse, memory_mode=mode
    )
    model = keras.Sequential([keras.Input((3,)), L.Dense(8), stack, L.Dense(2)])
    model.compile("adam", "mse")
    return model


X = np.random.default_rng(0).standard_normal((8, 3)).astype("float32")
Y = np.ones((8, 2), "float32")


def test_config_round_trip():
    layer = model().layers[1]
    config = layer.get_config()
    again = revkeras.ReversibleSequential.from_config(config)
    assert again.get_config() == config
    assert again.layers[0] is again.layers[2]
    assert again.layers[0] is not again.layers[1]


def test_clone_model():
    original = model()
    clone = keras.models.clone_model(original)
    clone.set_weights(original.get_weights())
    np.testing.assert_allclose(clone(X), original(X), rtol=1e-6)


@pytest.mark.parametrize("mode", ["reversible", "checkpoint", "none"])
def test_weights_are_exchanged_between_memory_modes(mode, tmp_path):
    original = model()
    original.fit(X, Y, verbose=0)
    original.save_weights(tmp_path / "m.weights.h5")
    other = model(mode)
    other.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_allclose(other(X), original(X), rtol=1e-5, atol=1e-6)


def test_lambda_coupling_is_refused_when_saved(tmp_path):
    stack = revkeras.ReversibleSequential([L.Dense(2)], lambda x, f: x + f, lambda y, f: y - f)
    unsaved = keras.Sequential([keras.Input((4,)), stack])
    with pytest.raises(ValueError, match="register_keras_serializable"):
        unsaved.save(tmp_path / "m.keras")


def in_fresh_process(code, *arguments):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    subprocess.run(
        [*python(), "-c", textwrap.dedent(code), *map(str, arguments)],
        check=True,
        env={**os.environ, "PYTHONPATH": root, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )


def test_keras_file_in_a_fresh_process(tmp_path):
    original = model()
    original.fit(X, Y, verbose=0)
    original.save(tmp_path / "m.keras")
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", original(X))
    in_fresh_process(
        """
        import sys, keras, numpy as np
        import revkeras, tests.test_saving
        folder = sys.argv[1]
        model = keras.models.load_model(f"{folder}/m.keras", safe_mode=True)
        x, y = np.load(f"{folder}/x.npy"), np.load(f"{folder}/y.npy")
        np.testing.assert_allclose(model(x), y, rtol=1e-5, atol=1e-6)
        model.fit(x, y, verbose=0)  # the optimizer's state came along
        assert int(model.optimizer.iterations) == 2
        """,
        tmp_path,
    )


@pytest.mark.tensorflow("SavedModel")
def test_an_export_is_quiet(tmp_path, caplog):
    model("reversible").export(tmp_path / "saved", verbose=False)
    assert [r.getMessage() for r in caplog.records if "valid node name" in r.getMessage()] == []


def exported_graph(block, depth, folder):
    """What `model.export()` writes of a stack of such blocks."""
    stack = revkeras.ReversibleSequential([block(4) for _ in range(depth)])
    keras.Sequential([keras.Input((8,)), stack]).export(folder, verbose=False)
    contents = (folder / "saved_model.pb").read_bytes()
    return saved_model_pb2.SavedModel.FromString(contents).meta_graphs[0]


@pytest.mark.tensorflow("SavedModel")
@pytest.mark.parametrize("block", [L.Dense, blocks.batch_norm])
def test_an_export_takes_as_much_of_each_block(block, tmp_path):
    """TensorFlow takes the square of the tensors that a gradient reads, where it saves one."""
    graphs = [exported_graph(block, depth, tmp_path / str(depth)) for depth in (2, 3, 4)]
    read = [
        sum(node.WhichOneof("kind") == "captured_tensor" for node in graph.object_graph_def.nodes)
        for graph in graphs
    ]
    assert read[0] == read[1] == read[2] > 0
    functions = [[f.node_def for f in graph.graph_def.library.function] for graph in graphs]
    assert len(functions[0]) == len(functions[1]) == len(functions[2])
    operations = [sum(map(len, nodes)) for nodes in functions]
    assert operations[1] - operations[0] == operations[2] - operations[1]


@pytest.mark.tensorflow("SavedModel")
def test_an_exported_gradient_has_the_weights_of_the_forward_pass(tmp_path):
    original = model()
    original.export(tmp_path, verbose=False)
    loaded = tf.saved_model.load(tmp_path)

    def gradient(function, variables):
        x = tf.constant(X)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        for variable in variables:
            variable.assign(tf.zeros_like(variable))
        return tape.gradient(y, x)

    expected = gradient(original, [])
    found = gradient(loaded.serve, loaded.variables)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.tensorflow("SavedModel")
@pytest.mark.parametrize("mode", ["reversible", "checkpoint"])
def test_saved_model_without_revkeras(tmp_path, mode):
    """Loaded, served and differentiated where neither revkeras nor Keras is imported."""
    original = model(mode)
    original.fit(X, Y, verbose=0)
    original.export(tmp_path / "saved", verbose=False)
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = original(x, training=False)
        loss = tf.reduce_sum(y**2)
    np.savez(tmp_path / "expected.npz", x=X, y=y, dx=tape.gradient(loss, x))
    in_fresh_process(
        """
        import sys
        sys.modules["revkeras"] = sys.modules["keras"] = None  # importing either fails
        import numpy as np, tensorflow as tf
        folder = sys.argv[1]
        expected = np.load(f"{folder}/expected.npz")
        loaded = tf.saved_model.load(f"{folder}/saved")
        x = tf.constant(expected["x"])
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = loaded.serve(x)
            loss = tf.reduce_sum(y**2)
        np.testing.assert_allclose(y, expected["y"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(tape.gradient(loss, x), expected["dx"], rtol=1e-3, atol=1e-4)
        served = loaded.signatures["serving_default"](x)
        np.testing.assert_allclose(list(served.values())[0], expected["y"], rtol=1e-4, atol=1e-5)
        """,
        tmp_path,
    )


@pytest.mark.tensorflow("TensorFlow Lite")
def test_converted_to_tflite():
    stack = revkeras.ReversibleSequential([keras.layers.Dense(4) for _ in range(3)])
    model = keras.Sequential([keras.Input((8,)), stack])
    function = tf.function(lambda x: model(x, training=False))
    concrete = function.get_concrete_function(tf.TensorSpec((2, 8)))
    assert tf.lite.TFLiteConverter.from_concrete_functions([concrete], model).convert()


@keras.saving.register_keras_serializable("tests")
class Gated(L.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = L.Dense(4, activation="tanh")
        self.dropout = L.Dropout(0.5)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x, context):
        return self.dropout(self.dense(x)) * context


GRADIENTS = """
import sys
import numpy as np
import tensorflow as tf

loaded = tf.saved_model.load("model")
call = loaded.signatures["serving_default"]
inputs = {name: tf.constant(value) for name, value in np.load("inputs.npz").items()}
with tf.GradientTape() as tape:
    tape.watch(inputs)
    # `export` and `tf.saved_model.save` give the arguments other names.
    specs = call.structured_input_signature[1]
    feed = {name: inputs["x" if s.shape[1] == 8 else "context"] for name, s in specs.items()}
    y = tf.reduce_sum(next(iter(call(**feed).values())) ** 2)
found = tape.gradient(y, [inputs["x"], inputs["context"], *tape.watched_variables()])
np.savez("found.npz", *[g.numpy() for g in found])
assert "revkeras" not in sys.modules
"""


@pytest.mark.tensorflow("SavedModel")
@pytest.mark.parametrize("export", [keras.Model.export, tf.saved_model.save])
@pytest.mark.parametrize("mode", ["reversible", "checkpoint", "none"])
def test_an_exported_model_has_gradients(tmp_path, mode, export):
    x, context = keras.Input((8,), name="x"), keras.Input((4,), name="context")
    layers = [Gated() for _ in range(3)]
    stack = revkeras.ReversibleSequential([*layers, layers[0]], memory_mode=mode)
    model = keras.Model({"x": x, "context": context}, stack(x, context=context))
    draw = np.random.default_rng(0).standard_normal
    inputs = {"x": draw((2, 8)).astype("float32"), "context": draw((2, 4)).astype("float32")}
    np.savez(tmp_path / "inputs.npz", **inputs)
    export(model, str(tmp_path / "model"))
    subprocess.run([*python(), "-c", GRADIENTS], check=True, capture_output=True, cwd=tmp_path)
    found = list(np.load(tmp_path / "found.npz").values())

    stack.memory_mode = "none"
    inputs = {name: tf.constant(value) for name, value in inputs.items()}
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = tf.reduce_sum(model(inputs) ** 2)
    weights = [w.value for w in model.trainable_variables]
    expected = tape.gradient(y, [inputs["x"], inputs["context"], *weights])
    # Weights come in an order of their own.
    in_order = [
        sorted(gradients, key=lambda g: (g.shape, float(np.sum(g))))
        for gradients in (found, [g.numpy() for g in expected])
    ]
    for a, b in zip(*in_order, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
