"""Lists of blocks made reversible, and reversible stacks made plain."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import revkeras
from revkeras._stack.memory_modes import MEMORY_MODES
from tests import modes
from tests.convert.models import Block, X, functional

L = keras.layers


@keras.saving.register_keras_serializable("tests")
class Scaled(L.Layer):
    """Returns more than its update, and takes an argument."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = L.Dense(4)

    def build(self, x_shape, scale_shape=None):
        self.dense.build(x_shape)

    def call(self, x, scale):
        y = self.dense(x) * scale
        return y, keras.ops.mean(y)


def two_streams(stack, blocks, x):
    """The stack's additive recurrence by hand."""
    x0 = x1 = x
    for block in blocks:
        x0, x1 = x1, x0 + np.array(block(x1))
    return (x0 + x1) / 2


def test_a_sequential_model_of_plain_blocks():
    model = keras.Sequential([L.Dense(4, activation="tanh") for _ in range(4)], name="tower")
    model(X)
    stack = revkeras.to_reversible(model)
    assert isinstance(stack, revkeras.ReversibleSequential)
    assert stack.name == "tower"
    assert [id(v) for v in stack(X) is not None and stack.weights] == [id(v) for v in model.weights]
    np.testing.assert_allclose(stack(X), two_streams(stack, model.layers, X), rtol=1e-5)


def test_residual_blocks_lose_their_own_skip():
    blocks = [Block(rate=0.3) for _ in range(4)]
    stack = revkeras.to_reversible(blocks, residual=True)
    stack(X)
    functions = [lambda x, block=block: np.array(block(x)) - x for block in blocks]
    np.testing.assert_allclose(stack(X), two_streams(stack, functions, X), rtol=1e-4, atol=1e-5)
    modes.assert_modes_agree(stack, X)


def test_a_shared_block_stays_shared_and_options_are_passed_on():
    block = Block()
    stack = revkeras.to_reversible([block, block], residual=True, coupling="leapfrog")
    stack(X)
    assert stack.layers[0] is stack.layers[1]
    assert isinstance(stack.couplings[0], revkeras.couplings.Leapfrog)
    split = revkeras.to_reversible([L.Dense(2)], split_axis=-1)
    assert split(X).shape == (6, 4)


@keras.saving.register_keras_serializable("tests")
class Gated(Scaled):
    """A residual block that needs an argument."""

    def call(self, x, scale):
        return x + self.dense(x) * scale


def test_residual_blocks_that_need_an_argument():
    blocks, scale = [Gated() for _ in range(3)], np.full((6, 1), 0.5, "float32")
    stack = revkeras.to_reversible(blocks, residual=True)
    found = stack(X, scale=scale)
    functions = [lambda x, block=block: np.array(block.dense(x)) * scale for block in blocks]
    np.testing.assert_allclose(found, two_streams(stack, functions, X), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="is not residual: its input does not reach"):
        revkeras.to_reversible([Gated(), Scaled()], residual=True)(X, scale=scale)


def test_a_stack_of_residual_blocks_in_a_file(tmp_path):
    stack = revkeras.to_reversible([Block() for _ in range(3)], residual=True)
    model = keras.Sequential([keras.Input((4,)), stack, L.Dense(2)])
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(loaded(X), model(X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (lambda: L.Dense(4), "is not residual: its input does not reach its output through"),
        (lambda: L.Dense(3), r"is not residual: it takes the shape \(None, 4\) to \(None, 3\)"),
        (
            lambda: keras.Sequential([Block(), L.LayerNormalization()]),
            "is not residual: its input does not reach",
        ),
    ],
)
def test_a_block_that_is_not_residual(block, message):
    stack = revkeras.to_reversible([Block(), block()], residual=True)
    with pytest.raises(ValueError, match=message):
        stack(X)


def test_bad_arguments():
    with pytest.raises(ValueError, match="must keep the shape"):
        revkeras.to_reversible([L.Dense(4), L.Dense(3)])(X)
    with pytest.raises(TypeError, match="`model_or_layers`: expected a `keras.Sequential`"):
        revkeras.to_reversible(functional())
    with pytest.raises(TypeError, match="`model_or_layers`: expected a list of Keras layers"):
        revkeras.to_reversible(3)
    with pytest.raises(TypeError, match="`residual`: expected a boolean"):
        revkeras.to_reversible([L.Dense(4)], residual="yes")
    for model, message in (
        (functional(), "holds nothing that is reversible"),
        (keras.Sequential([L.Dense(2)]), "is not built"),
        (revkeras.ReversibleSequential([L.Dense(2)]), "is not built"),
    ):
        with pytest.raises(ValueError, match=message):
            revkeras.to_plain(model)
    with pytest.raises(
        ValueError, match="`model`: expected a model that `revkeras.to_momentum_net`"
    ):
        revkeras.from_momentum_net(functional())
    with pytest.raises(TypeError, match="`model`: expected a `keras.Model`"):
        revkeras.to_plain(L.Dense(2))


def stacks():
    yield "additive", revkeras.ReversibleSequential([L.Dense(2) for _ in range(3)]), (4,)
    yield "affine", revkeras.ReversibleSequential([L.Dense(4)] * 2, coupling="affine"), (4,)
    momentum = revkeras.couplings.Momentum(0.5, initial_velocity="learned")
    blocks = [Block() for _ in range(3)]
    options = {"coupling": momentum, "split_axis": None}
    yield "momentum", revkeras.ReversibleSequential(blocks, **options), (4,)
    exact = revkeras.couplings.Additive(exact=True)
    yield "exact", revkeras.ReversibleSequential([L.Dense(2)], coupling=exact), (4,)
    convolutions = [L.Conv2D(2, 3, padding="same"), revkeras.layers.SpaceToDepth()]
    yield "downsampling", revkeras.ReversibleSequential(convolutions), (4, 4, 4)


@pytest.mark.parametrize(
    ("stack", "shape"), [x[1:] for x in stacks()], ids=[x[0] for x in stacks()]
)
def test_stacks_written_out(stack, shape, tmp_path):
    model = keras.Sequential([keras.Input(shape), stack, L.Dense(2)])
    x = np.random.default_rng(0).standard_normal((3, *shape)).astype("float32")
    expected = model(x)
    plain = revkeras.to_plain(model)
    np.testing.assert_allclose(plain(x), expected, rtol=1e-5, atol=1e-6)
    layers = list(plain._flatten_layers())
    assert not any(isinstance(layer, revkeras.ReversibleSequential) for layer in layers)
    plain.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(loaded(x), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model(x), expected)  # the model itself goes on
    np.testing.assert_allclose(revkeras.to_plain(stack)(x), stack(x), rtol=1e-5, atol=1e-6)


def test_arguments_and_more_outputs_are_written_out():
    x, scale = keras.Input((4,)), keras.Input((1,))
    stack = revkeras.ReversibleSequential([Scaled(), Scaled()], split_axis=None)
    y, *means = stack(x, scale=scale)
    inner = keras.Model([x, scale], [y, *means])
    outer = keras.Model([x, scale], inner([x, scale]))
    data = [X, np.full((6, 1), 0.5, "float32")]
    for model in inner, outer:
        plain = revkeras.to_plain(model)
        for found, expected in zip(plain(data), model(data), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_stack_that_is_called_twice(tmp_path):
    stack = revkeras.ReversibleSequential([L.Dense(2) for _ in range(2)])
    a, b = keras.Input((4,)), keras.Input((4,))
    model = keras.Model([a, b], [stack(a), stack(stack(b))])
    plain = revkeras.to_plain(model)
    assert [id(v) for v in plain.weights] == [id(v) for v in model.weights]
    plain.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    for found in plain([X, X + 1]), loaded([X, X + 1]):
        for y, expected in zip(found, model([X, X + 1]), strict=True):
            np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def small_transformer():
    tokens = np.ones((2, 5), "int32")
    data = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    sizes = {"hidden_dim": 8, "num_heads": 2, "max_length": 8}
    return revkeras.models.ReversibleTransformer(20, decoder_layers=2, **sizes), data


def small_irevnet():
    images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype("float32")
    options = {"include_top": False, "input_shape": (8, 8, 3)}
    return revkeras.models.IRevNet((1, 1), (1, 2), **options), images


@pytest.mark.parametrize("build", [small_transformer, small_irevnet])
def test_models_of_the_library_become_plain(build, tmp_path):
    model, data = build()
    model.compile("adam", "mse")
    plain = revkeras.to_plain(model)
    assert type(plain) is type(keras.Model(plain.input, plain.output))
    assert not plain.compiled
    np.testing.assert_allclose(plain(data), model(data), rtol=1e-5, atol=1e-5)
    plain.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(loaded(data), model(data), rtol=1e-5, atol=1e-5)


@pytest.mark.tensorflow("in JAX's exports, unknown sizes of two inputs are never the same")
@pytest.mark.parametrize("build", [small_transformer, small_irevnet])
def test_plain_models_are_exported(build, tmp_path):
    model, data = build()
    plain = revkeras.to_plain(model)
    plain.export(tmp_path / "saved", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(loaded.serve(data), model(data), rtol=1e-4, atol=1e-5)


def test_stacks_in_a_subclassed_model_are_differentiated_plainly_around_it():
    class Owner(keras.Model):
        def __init__(self):
            super().__init__()
            self.stack = revkeras.ReversibleSequential([L.Dense(2) for _ in range(2)])

        def call(self, x):
            return self.stack(x)

    model = Owner()
    expected = model(X)
    plain = revkeras.to_plain(model)
    assert plain is not model
    assert [id(v) for v in plain.weights] == [id(v) for v in model.weights]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MEMORY_MODES, "reversible", None)
        np.testing.assert_allclose(plain(X), expected, rtol=1e-6)
    np.testing.assert_array_equal(model(X), expected)
    with pytest.raises(NotImplementedError, match="cannot be saved. Export it"):
        plain.save("unused.keras")


class Reader(L.Layer):
    """A residual block that looks for the mask on its input, and names none in its `call()`."""

    def __init__(self):
        super().__init__()
        self.supports_masking = True
        self.dense = L.Dense(4)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        mean = L.GlobalAveragePooling1D(keepdims=True)(x)
        return x + self.dense(x) * mean


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("convert", ["momentum", "residual", "stack"])
def test_masks_go_along_in_a_plain_model(convert, policy):
    keras.config.set_dtype_policy(policy)
    tokens = np.array([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0]])
    blocks = [Reader() for _ in range(3)]
    if convert != "momentum":
        residual = convert == "residual"
        blocks = [revkeras.to_reversible(blocks, residual=residual, split_axis=None)]
    first = keras.Input((5,)), L.Embedding(9, 4, mask_zero=True)
    model = keras.Sequential([*first, *blocks, L.GlobalAveragePooling1D()])
    if convert == "momentum":
        revkeras.to_momentum_net(model, beta=0.4)
    expected = model(tokens)
    plain = revkeras.to_plain(model)
    assert plain is not model
    np.testing.assert_allclose(plain(tokens), expected, rtol=1e-6)
