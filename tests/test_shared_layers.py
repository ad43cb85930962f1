"""A layer that several blocks of a stack hold is one layer in configs, copies and files too."""

import json
import os
import subprocess

import keras
import numpy as np
import pytest

import revkeras
from revkeras import ReversibleSequential
from tests.differentiation import gradients
from tests.warm import python

L = keras.layers
X = np.random.default_rng(0).standard_normal((5, 8)).astype("float32")


class Holder(L.Layer):
    """A user's layer that is given another one."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def build(self, shape):
        if not self.inner.built:
            self.inner.build(shape)

    def call(self, x):
        return keras.ops.tanh(self.inner(x))

    def get_config(self):
        inner = keras.saving.serialize_keras_object(self.inner)
        return {**super().get_config(), "inner": inner}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("inner")), **config)


@keras.saving.register_keras_serializable("tests_shared")
class Block(Holder):
    """A block that holds another layer."""


@keras.saving.register_keras_serializable("tests_shared")
class Shift(Holder):
    """A layer with an inverse: it adds a number that another layer makes of ones."""

    def call(self, x):
        return x + self._shift(x)

    def inverse(self, y):
        return y - self._shift(y)

    def _shift(self, x):
        return keras.ops.sum(self.inner(keras.ops.ones((1, 4), x.dtype)))

    def build(self, shape):
        super().build((None, 4))


@keras.saving.register_keras_serializable("tests_shared")
class Forgetful(L.Layer):
    """A block that is given a layer and makes another one when it is loaded."""

    def __init__(self, units=4, inner=None, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.inner = inner or L.Dense(units)

    def build(self, shape):
        if not self.inner.built:
            self.inner.build(shape)

    def call(self, x):
        return self.inner(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def functional(inner):
    x = keras.Input((4,))
    return keras.Model(x, L.Add()([x, L.Activation("tanh")(inner(x))]))


def called_twice(inner):
    x = keras.Input((4,))
    return keras.Model(x, inner(L.Activation("tanh")(inner(x))))


def stack_of(inner):
    blocks = [keras.Sequential([L.Dense(2, activation="tanh")]) for _ in range(2)]
    return keras.Sequential([ReversibleSequential(blocks), Block(inner)])


BLOCKS = {
    "itself": lambda inner: inner,
    "layer": Block,
    "sequential": lambda inner: keras.Sequential([inner, L.Activation("tanh")]),
    "built": lambda inner: keras.Sequential([keras.Input((4,)), inner, L.Dense(4)]),
    "functional": functional,
    "called_twice": called_twice,
    "nested": lambda inner: keras.Sequential([Block(keras.Sequential([inner])), L.Dense(4)]),
    "nested_functional": lambda inner: Block(functional(Block(inner))),
    "checkpoint": lambda inner: revkeras.Checkpoint(Block(inner)),
    "with_a_stack": stack_of,
    "invertible": Shift,
}
INNER = {
    "dense": lambda: L.Dense(4),
    "sequential": lambda: keras.Sequential([L.Dense(3, activation="tanh"), L.Dense(4)]),
    "functional": lambda: functional(L.Dense(4)),
    "recreates_its_own": lambda: Forgetful(4),
}


def stack_sharing(kinds, inner="dense"):
    shared = INNER[inner]()
    stack = ReversibleSequential([BLOCKS[kind](shared) for kind in kinds])
    stack(X)
    for i, weight in enumerate(stack.weights):
        weight.assign(np.random.default_rng(i).standard_normal(weight.shape) / 4)
    return stack


def assert_equal(found, expected):
    assert len(found.weights) == len(expected.weights)
    np.testing.assert_allclose(found(X), expected(X), rtol=1e-5, atol=1e-5)


def through_file(layer, path):
    x = keras.Input((8,))
    keras.Model(x, layer(x)).save(path)
    return keras.models.load_model(path).layers[1]


PAIRS = [
    *((kind, kind) for kind in BLOCKS if kind != "itself"),
    *zip(BLOCKS, [*list(BLOCKS)[4:], *list(BLOCKS)[:4]], strict=True),
]


@pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
def test_configs_keep_what_blocks_share(kinds):
    stack = stack_sharing(kinds)
    config = stack.get_config()
    for given in config, json.loads(json.dumps(config)):
        copy = ReversibleSequential.from_config(given)
        copy.build_from_config(stack.get_build_config())
        copy.set_weights(stack.get_weights())
        assert_equal(copy, stack)
        assert json.dumps(copy.get_config()) == json.dumps(config)
    assert not {id(w) for w in copy.weights} & {id(w) for w in stack.weights}


@pytest.mark.parametrize("inner", INNER)
def test_files_keep_what_blocks_share(tmp_path, inner):
    stack = stack_sharing([*BLOCKS, "functional", "built"], inner)
    again = stack
    for _ in range(2):  # what was loaded is saved as well as what was made
        again = through_file(again, tmp_path / "m.keras")
        assert_equal(again, stack)


def test_weights_files_of_what_blocks_share(tmp_path):
    stack = stack_sharing(BLOCKS)
    keras.Sequential([keras.Input((8,)), stack]).save_weights(tmp_path / "m.weights.h5")
    copy = ReversibleSequential.from_config({**stack.get_config(), "memory_mode": "none"})
    model = keras.Sequential([keras.Input((8,)), copy])
    model.load_weights(tmp_path / "m.weights.h5")
    assert_equal(copy, stack)


def test_a_file_in_a_fresh_process(tmp_path):
    stack = stack_sharing(BLOCKS)
    model = keras.Sequential([keras.Input((8,)), stack])
    model.save(tmp_path / "m.keras")
    np.savez(tmp_path / "expected.npz", x=X, y=model(X), n=len(model.weights))
    code = """
import sys, keras, numpy as np, revkeras, tests.test_shared_layers
model = keras.models.load_model(sys.argv[1] + "/m.keras")
expected = np.load(sys.argv[1] + "/expected.npz")
assert len(model.weights) == expected["n"]
np.testing.assert_allclose(model(expected["x"]), expected["y"], rtol=1e-5, atol=1e-5)
"""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {**os.environ, "PYTHONPATH": root, "TF_CPP_MIN_LOG_LEVEL": "2"}
    subprocess.run([*python(), "-c", code, tmp_path], check=True, env=environment)


def test_a_shared_layer_trains_as_one(tmp_path):
    stack = stack_sharing(["layer", "functional", "sequential"])
    again = through_file(stack, tmp_path / "m.keras")
    for layer in stack, again:
        weights = layer.trainable_variables
        found = gradients(lambda layer=layer: layer(X) ** 2, [], weights)
        for weight, gradient in zip(weights, found, strict=True):
            weight.assign_sub(1e-3 * gradient)
    assert_equal(again, stack)


def test_two_stacks_and_the_model_share_a_layer(tmp_path):
    shared = L.Dense(4)
    stacks = [ReversibleSequential([Block(shared), BLOCKS["sequential"](shared)]) for _ in "ab"]
    model = keras.Sequential([keras.Input((8,)), *stacks, L.Dense(4), shared])
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert len(again.weights) == len(model.weights) == 4
    np.testing.assert_allclose(again(X), model(X), rtol=1e-6, atol=1e-6)


@keras.saving.register_keras_serializable("tests_shared")
class Twins(L.Layer):
    """Makes two copies of a stack, in files that are being loaded too."""

    def __init__(self, stack, **kwargs):
        super().__init__(**kwargs)
        self.config = stack.get_config()
        self.twins = [ReversibleSequential.from_config(stack.get_config()) for _ in range(2)]

    def build(self, shape):
        for twin in self.twins:
            twin.build(shape)

    def call(self, x):
        return self.twins[1](self.twins[0](x))

    def get_config(self):
        stack = keras.saving.serialize_keras_object(self.twins[0])
        return {**super().get_config(), "stack": stack}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("stack")), **config)


def test_copies_share_nothing_with_each_other(tmp_path):
    twins = Twins(stack_sharing(["layer", "functional", "nested"]))
    assert len(twins(X)) == len(X)
    inside = ReversibleSequential([keras.Sequential([twins]), Block(L.Dense(8))])
    assert len(inside(np.tile(X, 2))) == len(X)
    for layer in (
        twins,
        through_file(twins, tmp_path / "m.keras"),
        ReversibleSequential.from_config(inside.get_config()).layers[0].layers[0],
    ):
        layer.build((None, 8))
        first, second = ({id(w) for w in twin.weights} for twin in layer.twins)
        assert len(first) == len(second) == 4
        assert not first & second


def test_configs_without_shared_layers_are_as_they_were():
    stack = ReversibleSequential([functional(L.Dense(4)), Block(L.Dense(4))])
    config = stack.get_config()
    assert "shared_object_id" not in json.dumps(config)
    assert config.pop("shared_layers") == []  # files of old do not have it
    assert len(ReversibleSequential.from_config(config).layers) == 2


@pytest.mark.parametrize("kinds", [(Block, "lost"), ("lost", Block), ("lost", "lost")])
def test_a_block_that_makes_its_layers_anew_is_refused(tmp_path, kinds):
    shared = L.Dense(4, name="tied")
    blocks = [
        Forgetful(4, shared, name=f"f{i}") if kind == "lost" else kind(shared, name=f"b{i}")
        for i, kind in enumerate(kinds)
    ]
    stack = ReversibleSequential(blocks, name="stack")
    model = keras.Sequential([keras.Input((8,)), stack])
    message = (
        r"'stack' has no config: 'f\d' \(of type Forgetful\) and '[bf]\d' \(of type .*\) share the "
        r"layer 'tied' \(of type Dense\), which the config of 'f\d' .*leaves out.*save_weights"
    )
    with pytest.raises(ValueError, match=message):
        model.save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match=message):
        stack.get_config()
    model.save_weights(tmp_path / "m.weights.h5")


def test_functional_models_in_one_block_that_share_are_refused():
    shared = L.Dense(4, name="tied")
    block = keras.Sequential([functional(shared), functional(shared)])
    with pytest.raises(ValueError, match="share the layer 'tied', .*subclassed layer that holds"):
        ReversibleSequential([block]).get_config()
