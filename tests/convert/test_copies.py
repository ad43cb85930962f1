"""Copies of converted models: from configs, pickled, cloned, loaded without compiling."""

import copy
import pickle

import keras
import numpy as np
import pytest

import revkeras
from tests.convert.models import BUILDERS, DATA, Block, X, functional

KINDS = list(BUILDERS)


def converted(kind):
    return revkeras.to_momentum_net(BUILDERS[kind](), beta=0.2)


def assert_same(found, model, data):
    assert [len(run.blocks) for run in found.momentum_runs] == [4]
    np.testing.assert_allclose(found(data), model(data), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_from_the_config_as_keras_documents_it(kind):
    model = converted(kind)
    found = type(model).from_config(model.get_config())
    found(DATA[kind])
    found.set_weights(model.get_weights())
    assert_same(found, model, DATA[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_pickled_and_copied(kind):
    model = converted(kind)
    assert_same(pickle.loads(pickle.dumps(model)), model, DATA[kind])
    assert_same(copy.deepcopy(model), model, DATA[kind])


@keras.saving.register_keras_serializable("tests")
class Numbered(keras.Model):
    """Its blocks get other names each time: Keras counts on."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [Block() for _ in range(4)]

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def test_blocks_that_keras_names(tmp_path):
    model = Numbered()
    model(X)
    revkeras.to_momentum_net(model, beta=0.2)
    assert_same(copy.deepcopy(model), model, X)
    model.save(tmp_path / "m.keras")
    for _ in range(2):
        assert_same(keras.models.load_model(tmp_path / "m.keras"), model, X)


@pytest.mark.parametrize("kind", ["functional", "sequential"])
def test_clone_model_refuses_what_it_would_take_apart(kind):
    model = converted(kind)
    with pytest.raises(TypeError, match=r"'block_0' .*momentum network.*copy.deepcopy\(model\)"):
        keras.models.clone_model(model)
    assert keras.models.clone_model(revkeras.to_plain(model)).count_params()


def test_clone_model_of_what_it_takes_as_a_whole():
    model = converted("subclassed")
    found = keras.models.clone_model(model)
    found(X)
    found.set_weights(model.get_weights())
    assert_same(found, model, X)
    inner = converted("sequential")
    outer = keras.models.clone_model(keras.Sequential([keras.Input((4,)), inner]))
    outer.set_weights(inner.get_weights())
    assert_same(outer.layers[0], inner, X)


def test_a_model_of_the_same_layers_computes_block_by_block():
    model = converted("functional")
    found = keras.models.clone_model(model, clone_function=lambda layer: layer)
    np.testing.assert_allclose(
        found(DATA["functional"]), model(DATA["functional"]), rtol=1e-5, atol=1e-6
    )


def test_a_model_of_a_part_is_not_saved_as_what_it_is_not(tmp_path):
    model = converted("functional")
    part = keras.Model(model.input, model.get_layer("block_1").output)
    with pytest.raises(TypeError, match="'block_0' .*Save or copy the model that was converted"):
        part.save(tmp_path / "m.keras")


def test_loaded_without_compiling(tmp_path):
    def own_loss(y_true, y_pred):
        return keras.ops.mean(keras.ops.abs(y_true - y_pred), axis=-1)

    model = revkeras.to_momentum_net(functional())
    model.compile("adam", own_loss)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras", compile=False)
    assert not loaded.compiled
    assert_same(loaded, model, DATA["functional"])
