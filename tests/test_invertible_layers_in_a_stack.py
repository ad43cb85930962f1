"""Layers with an inverse of their own, between the blocks of a stack."""

import keras
import numpy as np
import pytest

from revkeras import ReversibleSequential
from revkeras.couplings import Additive, Momentum
from revkeras.layers import (
    ActNorm,
    DepthToSpace,
    InvertibleDense,
    Permute,
    Reverse,
    SpaceToDepth,
    Split,
)
from tests.blocks import Attention
from tests.compiling import compiled
from tests.differentiation import COMPILED, gradients, jacobian
from tests.modes import assert_modes_agree, assert_same_training, fit, in_mode

L = keras.layers


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


def dense(channels):
    return L.Dense(channels, activation="tanh")


def conv(channels):
    return keras.Sequential([L.Conv2D(channels, 3, padding="same"), L.Activation("tanh")])


@keras.saving.register_keras_serializable("tests")
class Doubling(L.Layer):
    """A user's layer with an inverse and without a log-determinant."""

    def call(self, inputs):
        return inputs * 2

    def inverse(self, outputs):
        return outputs / 2


STACKS = {
    "vector": (
        lambda: [InvertibleDense(), dense(4), ActNorm(), Permute(seed=1), dense(4), Reverse()],
        (3, 8),
    ),
    "image": (
        lambda: [conv(2), SpaceToDepth(), conv(8), InvertibleDense(), conv(8), DepthToSpace()],
        (2, 4, 4, 4),
    ),
    "multi-scale": (lambda: [dense(8), Split(), dense(4), Split(), dense(2)], (3, 16)),
    "own": (lambda: [dense(4), Doubling(), dense(4)], (3, 8)),
    "alone": (lambda: [InvertibleDense()], (3, 8)),
}


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("kind", sorted(STACKS))
def test_modes_agree(kind, graph):
    layers, shape = STACKS[kind]
    layer = ReversibleSequential(layers())
    assert_modes_agree(layer, normal(*shape), graph=graph, training=True)


@pytest.mark.parametrize("kind", ["vector", "own"])
def test_streams_apart(kind):
    layers, _ = STACKS[kind]
    layer = ReversibleSequential(
        [L.Dense(8, activation="tanh") if isinstance(x, L.Dense) else x for x in layers()]
    )
    x = [normal(3, 8), normal(3, 8) + 1]
    assert_modes_agree(layer, *x)
    y = layer(x)
    for found, expected in zip(layer.inverse(y), x, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("kind", sorted(STACKS))
def test_inverse(kind):
    layers, shape = STACKS[kind]
    layer = ReversibleSequential(layers())
    x = normal(*shape)
    np.testing.assert_allclose(layer.inverse(layer(x)), x, atol=1e-4)


@pytest.mark.parametrize("mode", ["reversible", "checkpoint", "none"])
@pytest.mark.parametrize("kind", ["vector", "multi-scale"])
def test_gradient_of_the_inverse(kind, mode):
    """The inverse's Jacobian is the inverse of the Jacobian."""
    layers, shape = STACKS[kind]
    built = ReversibleSequential(layers())
    built(normal(*shape))
    layer = in_mode(built, mode)
    x = normal(*shape)[:1]
    (forward,) = jacobian(layer, x)
    y = np.concatenate(list(map(np.array, keras.tree.flatten(layer(x)))), -1)
    (backward,) = jacobian(lambda y: layer.inverse(unjoined(y, kind)), y)
    np.testing.assert_allclose(backward @ forward, np.eye(shape[-1]), atol=1e-3)


def unjoined(y, kind):
    """The outputs of a stack, of all of them in one tensor."""
    return (y[:, :4], y[:, 4:12], y[:, 12:]) if kind == "multi-scale" else y


@pytest.mark.parametrize("mode", ["reversible", "none"])
def test_weight_gradients_of_the_inverse(mode):
    """Through forward and back, nothing depends on a weight."""
    layers, shape = STACKS["vector"]
    built = ReversibleSequential(layers())
    built(normal(*shape))
    layer = in_mode(built, mode)
    found = gradients(
        lambda: layer.inverse(layer(normal(*shape))) ** 2, [], layer.trainable_variables
    )
    for gradient in found:
        np.testing.assert_allclose(gradient, np.zeros_like(gradient), atol=1e-4)


@pytest.mark.parametrize("mode", ["reversible", "checkpoint", "none"])
@pytest.mark.parametrize("coupling", ["additive", "affine", "momentum", "leapfrog"])
def test_log_det(coupling, mode):
    size = 6
    channels = size if coupling == "affine" else size // 2
    layer = ReversibleSequential(
        [dense(channels), ActNorm(), InvertibleDense(), dense(channels), Reverse()],
        coupling=coupling,
        memory_mode=mode,
    )
    x = normal(2, size)
    layer(x, training=True)  # starts ActNorm
    y, log_det = layer(x, return_log_det=True)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian(layer, x))[1], atol=1e-4)
    back, negative = layer.inverse(y, return_log_det=True)
    np.testing.assert_allclose(back, x, atol=1e-4)
    np.testing.assert_allclose(negative, -log_det, atol=1e-4)


@pytest.mark.parametrize("kind", ["image", "multi-scale", "vector"])
def test_log_det_in_the_modes(kind):
    layers, shape = STACKS[kind]
    layer = ReversibleSequential(layers())
    assert_modes_agree(layer, normal(*shape), return_log_det=True, training=True)


@pytest.mark.parametrize(
    "size",
    [8, pytest.param(None, marks=pytest.mark.tensorflow("sizes that a graph does not know"))],
)
def test_in_a_model(size, tmp_path):
    layers, _ = STACKS["image"]
    stack = ReversibleSequential(layers())
    model = keras.Sequential([keras.Input((size, size, 4)), stack, stack.as_inverse()])
    x = normal(2, 8, 8, 4)
    assert model.output_shape == (None, size, size, 4)
    np.testing.assert_allclose(model(x), x, atol=1e-4)
    compiled(model, "sgd")
    model.fit(x, x, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(loaded(x), x, atol=1e-4)
    assert len(loaded.trainable_variables) == len(model.trainable_variables)


def test_shapes_change():
    layers, _ = STACKS["multi-scale"]
    x = keras.Input((16,))
    y, first, second, log_det = ReversibleSequential(layers())(x, return_log_det=True)
    assert [t.shape for t in (y, first, second)] == [(None, 4), (None, 8), (None, 4)]
    model = keras.Model(x, [y, first, second, log_det])
    assert [t.shape for t in model(normal(5, 16))] == [(5, 4), (5, 8), (5, 4), (5,)]


def test_act_norm_starts_on_the_first_training_batch():
    stack = ReversibleSequential([ActNorm(), dense(4), ActNorm(), dense(4)])
    model = keras.Sequential([keras.Input((8,)), stack])
    compiled(model, "sgd")
    x = normal(64, 8) * 5 + 3
    model.fit(x, x, batch_size=64, verbose=0)
    np.testing.assert_allclose(np.std(stack.layers[0](x), 0), np.ones(8), atol=0.1)


def test_act_norm_starts_inside_an_outer_layer_that_trains():
    class Outer(L.Layer):
        def __init__(self):
            super().__init__()
            self.stack = ReversibleSequential([ActNorm(), dense(4)])

        def call(self, inputs):
            return self.stack(inputs)

    outer, x = Outer(), normal(64, 8) * 5 + 3
    outer(x, training=True)
    np.testing.assert_allclose(outer.stack.layers[0].mean, x.mean(0), rtol=1e-4)


def test_built_while_a_graph_is_traced():
    class Outer(keras.Model):
        def __init__(self, mode):
            super().__init__()
            layers = [ActNorm(), dense(4), InvertibleDense(), dense(4)]
            self.stack = ReversibleSequential(layers, memory_mode=mode)

        def call(self, inputs, training=None):
            return self.stack(inputs, training=training)

    def train(mode):
        keras.utils.set_random_seed(0)
        model, x = Outer(mode), normal(64, 8)
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.build((None, 8))  # of a subclass, this builds nothing
        return fit(model, x, x)

    assert_same_training(train("reversible"), train("none"))


def test_second_derivative():
    layers, shape = STACKS["vector"]
    built = ReversibleSequential(layers())
    x = normal(*shape)
    built(x)

    def second(layer):
        def penalty(x):
            return gradients(lambda x: layer(x) ** 3, [x])[0] ** 2

        return np.array(gradients(penalty, [x], graph=COMPILED)[0])

    expected = second(in_mode(built, "none"))
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(second(built) / scale, expected / scale, atol=1e-4)


def test_exact_additive_takes_layers_that_rearrange():
    layer = ReversibleSequential(
        [dense(4), Reverse(), dense(4), Permute(seed=0), dense(4)], coupling=Additive(exact=True)
    )
    assert_modes_agree(layer, normal(3, 8), tolerance=1e-5)
    x = normal(3, 8).round(3)
    np.testing.assert_allclose(layer.inverse(layer(x)), x, atol=1e-6)


@keras.saving.register_keras_serializable("tests")
class Training(L.Layer):
    """Another function in training; its inverse knows."""

    def call(self, inputs, training=None):
        return inputs * (2.0 if training else 1.0)

    def inverse(self, outputs, training=None):
        return outputs / (2.0 if training else 1.0)


@keras.saving.register_keras_serializable("tests")
class Counting(Doubling):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, inputs):
        self.count.assign(self.count + 1)
        self.add_loss(keras.ops.mean(inputs))
        return super().call(inputs)


def test_inverse_that_depends_on_training():
    layer = ReversibleSequential([dense(4), Training(), dense(4)])
    assert_modes_agree(layer, normal(3, 8), training=True)
    y = layer(normal(3, 8), training=True)
    np.testing.assert_allclose(layer.inverse(y, training=True), normal(3, 8), atol=1e-5)


def test_building_leaves_layers_as_they_are():
    layer = ReversibleSequential([dense(4), Counting(), dense(4)])
    layer.build((None, 8))
    assert float(layer.layers[1].count) == 0
    assert not layer.losses
    assert_modes_agree(layer, normal(3, 8), training=True)


def test_masks_do_not_pass_a_layer_that_changes_the_shape():
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            L.Embedding(5, 8, mask_zero=True),
            ReversibleSequential([dense(4), SpaceToDepth(), dense(8)]),
            L.GRU(3),
        ]
    )
    assert model(np.array([[1, 2, 0, 0]])).shape == (1, 3)


def test_inverse_keeps_the_mask():
    embedding, stack = L.Embedding(5, 8, mask_zero=True), ReversibleSequential([Attention(4)] * 2)
    x = embedding(np.array([[1, 2, 0], [3, 4, 1]]))
    y = stack(x)
    np.testing.assert_allclose(stack.inverse(y), x, atol=1e-5)
    np.testing.assert_allclose(stack.inverse(np.array(y), mask=y._keras_mask), x, atol=1e-5)
    np.testing.assert_array_equal(stack.as_inverse()(y)._keras_mask, y._keras_mask)


def test_inverse_of_the_inverse():
    stack = ReversibleSequential([dense(4), Reverse(), dense(4)])
    x = normal(2, 8)
    y = stack(x)
    np.testing.assert_allclose(stack.as_inverse().inverse(x), y)


class Dropping(L.Layer):
    def call(self, inputs):
        return inputs[..., :-1]

    def inverse(self, outputs):
        return keras.ops.pad(outputs, ((0, 0), (0, 1)))


class OnlyInTraining(Doubling):
    def call(self, inputs, training=None):
        return inputs * (3 if training else 2)


class Halving(Doubling):
    def call(self, inputs):
        return inputs / 2


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            lambda: ReversibleSequential([dense(4), Halving()])(normal(2, 8)),
            "Block 1 .*Halving.*does not undo itself.*differs",
        ),
        (
            lambda: ReversibleSequential([dense(4), OnlyInTraining()])(normal(2, 8)),
            "Block 1 .*OnlyInTraining.*does not undo itself: with training=True",
        ),
        (
            lambda: ReversibleSequential([dense(4), Split()], coupling=Additive(exact=True))(
                normal(2, 8)
            ),
            r"takes a part of the streams out, beside Additive\(exact=True\)",
        ),
        (
            lambda: _called([dense(4)], normal(2, 8)).inverse((normal(2, 8), normal(2))),
            "expected one tensor, received 2. Leave out the log-determinant",
        ),
        (
            lambda: _called([dense(4)], normal(2, 8)).inverse(keras.Input((8,))),
            "received symbolic.*`as_inverse",
        ),
        (
            lambda: ReversibleSequential([dense(4)], coupling=Momentum(initial_velocity="learned")),
            "learns how a stream starts.*split_axis=-1",
        ),
        (
            lambda: ReversibleSequential([L.Dense(3)])(normal(2, 8)),
            r"received \(2, 3\)\. A stream has half .* has to define `inverse\(\)`",
        ),
        (
            lambda: ReversibleSequential([Doubling()], coupling=Additive(exact=True)),
            r"Layer 0 .*Doubling.*every bit that Additive\(exact=True\) needs",
        ),
        (
            lambda: ReversibleSequential([Reverse()], coupling=Momentum(exact=True)),
            r"Layer 0 .*Reverse.*every bit that Momentum\(exact=True\) needs",
        ),
        (
            lambda: ReversibleSequential([dense(4)], coupling=[Momentum(exact=True), "additive"]),
            "must be the only one of its stack.*'Momentum', 'Additive'",
        ),
        (
            lambda: _called([dense(4)], normal(2, 8), coupling=Momentum(exact=True)).inverse(
                normal(2, 8)
            ),
            "no inverse from its outputs alone.*Momentum.*remainders",
        ),
        (
            lambda: ReversibleSequential([Dropping()])(normal(2, 8)),
            "Block 0 .*Dropping.*not two streams.*even size.*received 7",
        ),
        (
            lambda: ReversibleSequential([dense(4), Doubling()])(normal(2, 8), return_log_det=True),
            "Block 1 .*Doubling.*`log_det_jacobian",
        ),
        (lambda: ReversibleSequential([dense(4)]).inverse(normal(2, 8)), "no weights yet"),
        (
            lambda: _called([dense(4)], normal(2, 4), split_axis=None).inverse(normal(2, 4)),
            "one tensor does not determine two streams",
        ),
        (
            lambda: _called([dense(4), Split()], normal(2, 8)).inverse(normal(2, 4)),
            "tuple of the output and 1 tensors",
        ),
        (
            lambda: _called(
                [dense(4), keras.Sequential([L.Dense(4), L.Dropout(0.5)])], normal(2, 8)
            ).inverse(normal(2, 8), training=True),
            r"Block 1 .*random numbers.*training=False.*received training=True",
        ),
    ],
)
def test_bad_input(use, message):
    with pytest.raises(ValueError, match=message):
        use()


def _called(layers, x, **options):
    stack = ReversibleSequential(layers, **options)
    stack(x)
    return stack
