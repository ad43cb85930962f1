"""Residual blocks that a functional model's own operations make."""

import keras
import numpy as np
import pytest

import revkeras
from tests.convert.models import X, inlined

L = keras.layers


def dense(x, **options):
    return L.Dense(4, activation="tanh", **options)(x)


def lengths(build):
    """Of the runs that are found in what `build` makes of an input."""
    x = keras.Input((4,))
    model = keras.Model(x, build(x))
    expected = model(X)
    revkeras.to_momentum_net(model, beta=1e-7)
    for y, original in zip(keras.tree.flatten(model(X)), keras.tree.flatten(expected)):
        np.testing.assert_allclose(y, original, atol=1e-5)
    return [len(run.blocks) for run in model.momentum_runs]


def test_each_addition_is_a_block():
    def build(x):
        for _ in range(3):
            x = x + dense(x)
        x = L.Dense(5)(x)
        for _ in range(2):
            x = L.Add()([L.Dense(5)(L.ReLU()(x)), x])
        return x

    assert lengths(build) == [3, 2]


def test_blocks_of_several_additions():
    """The first and the last one are alone."""

    def build(x):
        x = x + L.Dense(4)(dense(x))
        for _ in range(3):
            x = x + dense(L.LayerNormalization()(x))
            x = x + dense(x)
        return x + dense(L.BatchNormalization()(x))

    assert lengths(build) == [3]


def test_an_addition_within_a_block_is_its_own():
    def build(x):
        for _ in range(3):
            h = dense(x)
            x = x + L.Dense(4)(h + dense(h))
        return x

    assert lengths(build) == [3]


def test_what_is_read_elsewhere_ends_a_run():
    def build(x):
        ends = []
        for _ in range(5):
            x = x + dense(x)
            ends.append(x)
        return [ends[1], x]

    assert lengths(build) == [2, 3]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("another tensor", "adds no two tensors of which one is computed from the other alone"),
        ("shared", "calls a layer that is called elsewhere too"),
        ("read inside", "something else reads what is inside it"),
        ("changed sum", "does not go on from another one"),
        ("other widths", "does not go on from another one"),
        ("no weights", "adds a function without weights"),
    ],
)
def test_additions_that_are_no_blocks(kind, reason):
    x = first = keras.Input((4,))
    shared, inside = L.Dense(4), []
    for _ in range(3):
        if kind == "another tensor":
            x = x + L.Dense(4)(L.Concatenate()([x, first]))
        elif kind == "shared":
            x = x + shared(x)
        elif kind == "read inside":
            inside.append(dense(x))
            x = x + L.Dense(4)(inside[-1])
        elif kind == "other widths":
            x = x + L.Dense(4)(L.Dense(5 + len(inside))(x))
            inside.append(L.Dense(9)(x))
        elif kind == "no weights":
            x = x + L.ReLU()(x)
        else:
            x = L.ReLU()(x + dense(x))
    model = keras.Model(first, [x, *inside])
    addition = rf"'add[_\d]*' \(an addition\): {reason}"
    with pytest.raises(ValueError, match=rf"no run of equal residual blocks(.|\n)*{addition}"):
        revkeras.to_momentum_net(model)


def test_the_model_keeps_its_layers_and_is_not_cloned():
    model = inlined(4)
    layers = list(model.layers)
    revkeras.to_momentum_net(model)
    assert all(a is b for a, b in zip(model.layers, layers, strict=True))
    assert model.compute_output_shape((7, 4)) == (7, 3)
    with pytest.raises(TypeError, match="is a momentum network.*deepcopy"):
        keras.models.clone_model(model)
    revkeras.from_momentum_net(model)
    keras.models.clone_model(model)


def test_a_model_of_keras_applications():
    model = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=3)
    images = np.random.default_rng(0).random((2, 32, 32, 3)).astype("float32")
    expected = model(images)
    revkeras.to_momentum_net(model, beta=1e-6)
    assert [len(run.blocks) for run in model.momentum_runs] == [2, 3, 2, 2]
    np.testing.assert_allclose(model(images), expected, atol=1e-5)
    assert revkeras.to_plain(model).count_params() == model.count_params()


def test_a_converted_model_in_another_becomes_plain():
    inner = inlined(4)
    revkeras.to_momentum_net(inner, beta=0.4)
    outer = keras.Sequential([keras.Input((4,)), inner, L.Dense(2)])
    expected = outer(X)
    plain = revkeras.to_plain(outer)
    np.testing.assert_allclose(plain(X), expected, atol=1e-5)
    np.testing.assert_array_equal(outer(X), expected)
    assert len(inner.momentum_runs) == 1
