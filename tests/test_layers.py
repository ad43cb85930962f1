"""Layers with an exact inverse."""

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from revkeras.layers import (
    ActNorm,
    DepthToSpace,
    InvertibleDense,
    Permute,
    Reverse,
    SpaceToDepth,
    Split,
)
from tests.differentiation import cases, gradients, in_graph, jacobian

ops = keras.ops

REARRANGING = [SpaceToDepth, DepthToSpace, Permute, Reverse, Split]
LAYERS = [*REARRANGING, InvertibleDense, ActNorm]
drawn = settings(
    max_examples=cases(15), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def normal(*shape, dtype="float32"):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


@st.composite
def layers_and_shapes(draw, classes):
    """A layer, and a shape that it takes."""
    cls = draw(st.sampled_from(classes))
    batch, channels = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    if cls in (SpaceToDepth, DepthToSpace):
        block, n = draw(st.integers(2, 3)), draw(st.integers(1, 3))
        space = [draw(st.integers(1, 2)) for _ in range(n)]
        if cls is SpaceToDepth:
            space = [size * block for size in space]
        else:
            channels *= block**n
        return cls(block), (batch, *space, channels)
    space = draw(st.lists(st.integers(1, 3), max_size=3))
    if cls is Split:
        return cls(), (batch, *space, 2 * channels)
    if cls is Permute and draw(st.booleans()):
        return cls(draw(st.permutations(range(channels)))), (batch, *space, channels)
    return cls(), (batch, *space, channels)


def shaken(layer, shape):
    """The layer, built and started, with weights that are not those of the start."""
    layer(normal(*shape), **({"training": True} if isinstance(layer, ActNorm) else {}))
    for v in layer.trainable_variables:
        v.assign(v + 0.2 * normal(*v.shape))
    return layer


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.max(np.abs(b)))


# The inverse


@given(layers_and_shapes(REARRANGING), st.sampled_from(["float32", "float16", "bfloat16", "int32"]))
@drawn
def test_rearranging_is_undone_bit_by_bit(layer_and_shape, dtype):
    """Of whatever bits: infinities, NaNs, signed zeros and subnormal numbers as well."""
    layer, shape = layer_and_shape
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    bits = np.random.default_rng(0).bytes(int(np.prod(shape)) * dtype.itemsize)
    x = ops.convert_to_tensor(np.frombuffer(bits, dtype).reshape(shape))
    again = layer.inverse(layer(x))
    assert layer.rearranges
    assert again.dtype == x.dtype
    assert again.shape == x.shape
    assert ops.convert_to_numpy(again).tobytes() == bits


@given(layers_and_shapes([InvertibleDense, ActNorm]))
@drawn
def test_arithmetic_is_undone(layer_and_shape):
    layer, shape = layer_and_shape
    layer, x = shaken(layer, shape), normal(*shape)
    assert not layer.rearranges
    close(layer.inverse(layer(x)), x)
    close(layer(layer.inverse(x)), x, 1e-4)


@pytest.mark.parametrize("cls", [InvertibleDense, ActNorm])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("bfloat16", 0.03)])
def test_inputs_are_processed_in_their_own_dtype(cls, dtype, tolerance):
    layer = shaken(cls(), (8, 4))
    x = ops.cast(normal(8, 4), dtype)
    y, again = layer(x), layer.inverse(layer(x))
    assert y.dtype == again.dtype == layer.log_det_jacobian(x).dtype == x.dtype
    close(ops.cast(again, "float64"), ops.cast(x, "float64"), tolerance)
    exact = layer(ops.cast(x, "float64"))
    close(ops.cast(y, "float64"), exact, tolerance / 4)  # one rounding, of the output


def test_depth_to_space_is_the_inverse_of_space_to_depth():
    x = normal(2, 4, 6, 3)
    y = SpaceToDepth()(x)
    np.testing.assert_array_equal(DepthToSpace()(y), x)
    np.testing.assert_array_equal(DepthToSpace().inverse(x), y)


@pytest.mark.tensorflow("its order of channels")
@pytest.mark.parametrize("block", [2, 3])
def test_space_to_depth_has_the_order_of_tensorflow(block):
    x = normal(2, 2 * block, 3 * block, 5)
    expected = np.array(tf.nn.space_to_depth(x, block))
    np.testing.assert_array_equal(SpaceToDepth(block)(x), expected)
    np.testing.assert_array_equal(DepthToSpace(block)(expected), x)


# The determinant


@given(layers_and_shapes(LAYERS))
@drawn
def test_log_det_is_that_of_the_jacobian(layer_and_shape):
    layer, shape = layer_and_shape
    shape, size = (min(shape[0], 2), *shape[1:]), int(np.prod(shape[1:]))
    assume(size <= 64)
    layer, x = shaken(layer, shape), ops.convert_to_tensor(normal(*shape, dtype="float64"))
    expected = np.linalg.slogdet(jacobian(layer, x))[1]
    log_det = layer.log_det_jacobian(x)
    assert log_det.dtype == x.dtype
    np.testing.assert_allclose(log_det, expected, atol=1e-9)
    if layer.rearranges:
        np.testing.assert_array_equal(log_det, np.zeros(shape[0]))


@pytest.mark.parametrize("cls", [InvertibleDense, ActNorm])
def test_log_det_trains_the_weights(cls):
    layer = shaken(cls(), (2, 3, 4))
    x = normal(2, 3, 4)
    (gradient,) = gradients(lambda: layer.log_det_jacobian(x), [], [layer.log_scale])
    np.testing.assert_allclose(gradient, np.full(4, 2 * 3.0))


# Unknown sizes, graphs, symbolic calls


@pytest.mark.tensorflow("sizes that a graph does not know")
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("cls", LAYERS)
def test_unknown_sizes_in_a_graph(cls, jit_compile):
    layer, x = shaken(cls(), (2, 4, 6, 8)), normal(3, 2, 8, 8)

    @tf.function(
        input_signature=[tf.TensorSpec((None, None, None, 8), "float32")], jit_compile=jit_compile
    )
    def run(x):
        y = layer(x)
        return y, layer.inverse(y), layer.log_det_jacobian(x)

    y, again, log_det = run(x)
    close(again, x)
    for a, b in zip(keras.tree.flatten(y), keras.tree.flatten(layer(x))):
        close(a, b)
    close(log_det, layer.log_det_jacobian(x))
    static = run.get_concrete_function().structured_outputs[0]
    expected = layer.compute_output_shape((None, None, None, 8))
    static = [tuple(s.shape) for s in keras.tree.flatten(static)]
    assert static == (list(expected) if cls is Split else [expected])


@pytest.mark.parametrize("cls", LAYERS)
def test_functional_model_of_unknown_sizes(cls):
    layer = cls()
    inputs = keras.Input((None, None, 8))
    outputs = layer(inputs)
    model = keras.Model(inputs, outputs)
    x = normal(2, 4, 6, 8)
    found, expected = keras.tree.flatten(model(x)), keras.tree.flatten(layer(x))
    for a, b, symbol in zip(found, expected, keras.tree.flatten(outputs)):
        np.testing.assert_array_equal(a, b)
        assert all(s in (None, n) for s, n in zip(symbol.shape, b.shape))
        assert symbol.shape[-1] == b.shape[-1]


def test_symbolic_outputs_keep_the_dtype():
    for cls in REARRANGING:
        outputs = cls()(keras.Input((4, 8), dtype="int32"))
        assert {y.dtype for y in keras.tree.flatten(outputs)} == {"int32"}


@pytest.mark.parametrize("cls", LAYERS)
def test_gradient_through_the_inverse(cls):
    """The gradients of `call` and of `inverse` undo each other, too."""
    layer, x = shaken(cls(), (2, 4, 8)), normal(2, 4, 8)
    (dx,) = gradients(lambda x: layer.inverse(layer(x)) * normal(2, 4, 8), [x])
    close(dx, normal(2, 4, 8))


# Files and policies


@pytest.mark.parametrize(
    "make",
    [
        lambda: SpaceToDepth(2),
        lambda: DepthToSpace(2),
        lambda: Permute(),
        lambda: Permute([3, 1, 0, 2]),
        lambda: Reverse(),
        lambda: InvertibleDense(),
        lambda: ActNorm(1e-3),
    ],
)
def test_keras_file(make, tmp_path):
    layer = make()
    model = keras.Sequential([keras.Input((None, 4)), layer])
    model(normal(2, 4, 4), training=True)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    x = 2 * normal(3, 6, 4)
    np.testing.assert_array_equal(loaded(x), model(x))
    np.testing.assert_array_equal(loaded(x, training=True), model(x, training=True))
    close(loaded.layers[-1].inverse(model(x)), x)
    assert loaded.layers[-1].get_config() == layer.get_config()


def test_keras_file_of_split(tmp_path):
    inputs = keras.Input((None, 4))
    keras.Model(inputs, Split()(inputs)).save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    x = normal(3, 6, 4)
    kept, latent = loaded(x)
    np.testing.assert_array_equal(kept, x[..., :2])
    np.testing.assert_array_equal(latent, x[..., 2:])


@pytest.mark.parametrize("cls", LAYERS)
def test_mixed_precision_leaves_the_stream_alone(cls):
    x = normal(2, 4, 8)
    plain = shaken(cls(), x.shape)
    keras.config.set_dtype_policy("mixed_bfloat16")
    layer = cls()
    layer(x)
    layer.set_weights(plain.get_weights())
    assert {v.dtype for v in layer.trainable_variables} <= {"float32"}
    for a, b in zip(keras.tree.flatten(layer(x)), keras.tree.flatten(plain(x))):
        assert a.dtype == "float32"
        np.testing.assert_array_equal(a, b)
    again = cls.from_config(layer.get_config())
    assert again.compute_dtype == "float32"


# Single layers


def test_random_order():
    keras.utils.set_random_seed(0)
    x = np.arange(50)[None]
    first, second = np.array(Permute()(x))[0], np.array(Permute()(x))[0]
    assert sorted(first) == sorted(second) == list(range(50))
    assert list(first) != list(second)
    keras.utils.set_random_seed(0)
    np.testing.assert_array_equal(Permute()(x)[0], first)
    np.testing.assert_array_equal(Permute(seed=3)(x), Permute(seed=3)(x))


def test_order_and_reverse_are_what_they_say():
    x = normal(2, 3)
    np.testing.assert_array_equal(Permute([2, 0, 1])(x), x[:, [2, 0, 1]])
    np.testing.assert_array_equal(Permute(np.array([2, 0, 1]))(x), x[:, [2, 0, 1]])
    np.testing.assert_array_equal(Reverse()(x), x[:, ::-1])


@pytest.mark.parametrize("channels", [1, 2, 7, 70])
def test_invertible_dense_starts_as_a_rotation(channels):
    layer = InvertibleDense()
    matrix = np.array(layer(np.eye(channels, dtype="float32")))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(channels), atol=1e-5)
    np.testing.assert_allclose(layer.log_det_jacobian(np.ones((3, channels))), 0, atol=1e-4)
    same = InvertibleDense(seed=1), InvertibleDense(seed=1)
    np.testing.assert_array_equal(same[0](matrix), same[1](matrix))
    assert len(layer.trainable_variables) == 3
    assert len(layer.non_trainable_variables) == 2


def test_training_keeps_the_inverse():
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), SpaceToDepth(), ActNorm(), InvertibleDense(), Permute()]
    )
    model.compile("adam", "mse", jit_compile=True)
    x = normal(16, 4, 4, 1)
    before = [np.array(v) for v in model.trainable_variables]
    model.fit(x, normal(16, 2, 2, 4), batch_size=8, epochs=3, verbose=0)
    for v, old in zip(model.trainable_variables, before):
        assert np.any(np.array(v) != old)
    y = model(x)
    for layer in reversed(model.layers):
        y = layer.inverse(y)
    close(y, x)


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_act_norm_starts_once_and_only_in_training(mode):
    layer = ActNorm()
    layer.build((None, None, 5))

    calls = {t: lambda x, t=t: layer(x, training=t) for t in (False, True)}
    if mode != "eager":
        calls = {
            t: in_graph(call, layer.variables, jit_compile=mode == "xla")
            for t, call in calls.items()
        }
    x = ops.convert_to_tensor(3 * normal(16, 8, 5) + np.arange(5, dtype="float32"))
    np.testing.assert_array_equal(calls[False](x), x)
    assert not np.array(layer.started)

    y = np.array(calls[True](x))
    assert np.array(layer.started)
    np.testing.assert_allclose(y.mean((0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((0, 1)), 1, atol=1e-5)
    close(layer.inverse(y), x)
    close(calls[False](x), y)

    statistics = np.array(layer.mean), np.array(layer.log_std)
    close(calls[True](x * 7 + 1), calls[False](x * 7 + 1))
    np.testing.assert_array_equal(layer.mean, statistics[0])
    np.testing.assert_array_equal(layer.log_std, statistics[1])


@pytest.mark.parametrize("graph", [False, True])
def test_act_norm_starts_in_a_stateless_scope(graph):
    layer, x = ActNorm(), ops.convert_to_tensor(3 * normal(16, 5) + 1)
    layer.build((None, 5))
    state = layer.non_trainable_variables

    def step(x, *values):
        with keras.StatelessScope(list(zip(state, values))) as scope:
            y = layer(x, training=True)
            again = layer.inverse(y)
        return y, again, [scope.get_current_value(v) for v in state]

    step = in_graph(step) if graph else step
    y, again, new = step(x, *[ops.copy(v.value) for v in state])
    assert not np.array(layer.started)
    close(again, x)
    np.testing.assert_allclose(np.std(y, 0), 1, atol=1e-5)
    other = x * 2 + 5
    y, again, newer = step(other, *new)
    for a, b in zip(newer, new):
        np.testing.assert_array_equal(a, b)
    close(again, other)
    for v, value in zip(state, new):
        v.assign(value)
    close(layer(other), y)


@pytest.mark.parametrize("graph", [False, True])
def test_no_gradient_goes_through_the_statistics(graph):
    layer, x = ActNorm(), normal(8, 3)
    layer.build(x.shape)
    found = []
    for _ in "starting", "started":
        weights = layer.log_scale, layer.bias
        found.append(gradients(lambda x: layer(x, training=True) ** 3, [x], weights, graph=graph))
        layer(x, training=True)
    for a, b in zip(*found):
        close(a, b)


def test_act_norm_does_not_blow_up_a_constant_channel():
    layer, x = ActNorm(), np.full((4, 2), 3.0, "float32")
    np.testing.assert_array_equal(layer(x, training=True), np.zeros((4, 2)))
    np.testing.assert_array_equal(layer(x + 1), np.ones((4, 2)))


# What is refused


BAD_ARGUMENTS = [
    (lambda: SpaceToDepth(1), r"argument `block_size`: .* received block_size=1"),
    (lambda: DepthToSpace(2.0), r"argument `block_size`: .* received block_size=2.0"),
    (lambda: SpaceToDepth(True), r"argument `block_size`: .* received block_size=True"),
    (lambda: Permute([0, 0, 2]), r"argument `order`: .* misses \[1\] and repeats \[0\]"),
    (lambda: Permute([0, 3, 1]), r"misses \[2\] and goes out of range with \[3\]"),
    (lambda: Permute([]), r"argument `order`: .* received order=\[\]"),
    (lambda: Permute("abc"), r"argument `order`: .* received order='abc'"),
    (lambda: Permute(3), r"argument `order`: .* received order=3"),
    (lambda: Permute([1, 0], seed=1), r"argument `seed`: .* received seed=1"),
    (lambda: Permute(seed="a"), r"argument `seed`: .* received seed='a'"),
    (lambda: InvertibleDense(seed=0.5), r"argument `seed`: .* received seed=0.5"),
    (lambda: ActNorm(epsilon=0), r"argument `epsilon`: .* received epsilon=0"),
    (lambda: ActNorm(epsilon="x"), r"argument `epsilon`: .* received epsilon='x'"),
    (lambda: Split().inverse(np.ones((2, 2))), r"argument `outputs`: expected a tuple"),
]


def test_a_block_size_of_numpy():
    layer = SpaceToDepth(np.int64(2))
    assert type(layer.get_config()["block_size"]) is int
    assert layer(np.ones((1, 4, 4, 3))).shape == (1, 2, 2, 12)


def test_bad_arguments():
    for make, message in BAD_ARGUMENTS:
        with pytest.raises(ValueError, match=message):
            make()


BAD_SHAPES = [
    (SpaceToDepth, (2, 4, 5, 3), r"divisible by block_size=2, received shape="),
    (DepthToSpace, (2, 4, 4, 6), r"divisible by block_size \*\* 2 = 4, received shape="),
    (SpaceToDepth, (2, 4), r"one, two or three spatial axes"),
    (DepthToSpace, (2, 2, 2, 2, 2, 16), r"one, two or three spatial axes"),
    (lambda: Permute([1, 0]), (2, 3), r"as its order has entries, 2, received input_shape="),
    (Split, (2, 3), r"even number of channels, received input_shape=\(.*3\)"),
    *[(cls, (2,), r"shape \(batch, \.\.\., channels\)") for cls in LAYERS[2:]],
]


def test_bad_shapes():
    for make, shape, message in BAD_SHAPES:
        with pytest.raises(ValueError, match=message):
            make().build(shape)
        with pytest.raises(ValueError, match=message):
            make()(np.ones(shape, "float32"))
        with pytest.raises(ValueError, match=message):
            make()(keras.Input(shape[1:]))


def test_unknown_channels_are_refused():
    for cls in LAYERS:
        with pytest.raises(ValueError, match="the number of channels known"):
            cls().build((None, None, None))


def test_inverse_needs_weights():
    for cls in (Permute, InvertibleDense, ActNorm):
        with pytest.raises(ValueError, match="has no weights yet"):
            cls().inverse(np.ones((2, 4), "float32"))


def test_another_number_of_channels_is_refused():
    for cls in (Permute, InvertibleDense, ActNorm):
        layer = cls()
        layer.build((None, 4))
        with pytest.raises(ValueError, match="axis -1 of input shape to have value 4"):
            layer(np.ones((2, 3), "float32"))


def test_integers_are_refused_where_there_is_arithmetic():
    for cls in (InvertibleDense, ActNorm):
        with pytest.raises(ValueError, match="floating-point inputs, received dtype='int32'"):
            cls()(np.ones((2, 4), "int32"))


def test_symbolic_tensors_are_refused_where_weights_would_be_frozen():
    for cls in LAYERS:
        layer, x = cls(), keras.Input((4, 8))
        y = layer(x)
        with pytest.raises(ValueError, match="inside the `call\\(\\)` of a layer or model"):
            layer.inverse(y)
        with pytest.raises(ValueError, match="inside the `call\\(\\)` of a layer or model"):
            layer.log_det_jacobian(x)
