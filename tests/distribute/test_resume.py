"""An interrupted training ends as one that was not; other stages and numbers go on with it."""

import random
from pathlib import Path

import keras
import numpy as np
import pytest

from revkeras.distribute import CheckpointError, SaveAndResume, ZeroStrategy
from revkeras.distribute import sharded_checkpoint as checkpoint
from tests.distribute.workers import needs_horovod, run_under_horovod, run_workers

_RESUMING = Path(__file__).with_name("resuming.py")
_RESTAGING = Path(__file__).with_name("restaging.py")


def test_a_worker_killed_at_any_step_leaves_no_trace_in_the_weights(tmp_path):
    step = random.randrange(1, 30)
    assert run_workers(_RESUMING, 2, [tmp_path, 2, f"1:{step}"]) == 137
    assert run_workers(_RESUMING, 2, [tmp_path, 2]) == 0


@needs_horovod
def test_the_same_under_horovod_at_stage_3(tmp_path):
    step = random.randrange(1, 30)
    assert run_under_horovod(_RESUMING, 2, [tmp_path, 3, f"0:{step}"])[0] != 0
    assert run_under_horovod(_RESUMING, 2, [tmp_path, 3])[0] == 0


def test_any_stage_and_number_of_workers_goes_on(tmp_path):
    for workers, stage in (3, 1), (2, 3), (1, 2):
        assert run_workers(_RESTAGING, workers, [tmp_path, stage]) == 0


X = np.random.default_rng(0).standard_normal((24, 4)).astype("float32")
DATA = {"x": X, "y": X[:, :1], "batch_size": 4, "shuffle": False, "verbose": 0}  # 6 batches


def _restarted(*layers, built=False, **options):
    """What a program that is started again has; with `built`, a step is traced once."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(1)
    strategy = ZeroStrategy()
    with strategy.scope():
        model = keras.Sequential(layers or [keras.Input((4,)), keras.layers.Dense(1)])
        model.compile(strategy.optimizer(keras.optimizers.SGD(0.1, **options)), "mse")
    if built:
        model.optimizer.build(model.trainable_variables)
    return strategy, model


def test_saves_by_hand_and_by_the_callback_have_one_counter(tmp_path):
    options = {"gradient_accumulation_steps": 4, "built": True}
    strategy, model = _restarted(**options)
    for _ in range(5):
        model.train_on_batch(X, X[:, :1])
    assert strategy.save_checkpoint(tmp_path).endswith("step-00000005")
    for epochs in 1, 2:
        strategy, model = _restarted(**options)
        resume = SaveAndResume(strategy, tmp_path, every=3)
        model.fit(**DATA, epochs=epochs, callbacks=[resume])
        found = checkpoint.newest(tmp_path)
        assert found.step == 5 + 6 * epochs
        assert found.position == {"epoch": epochs, "batch": 0}
        assert strategy.save_checkpoint(tmp_path) == str(found.folder)
        assert checkpoint.newest(tmp_path).position == found.position
    strategy, _ = _restarted(**options)
    strategy.restore_checkpoint(tmp_path)
    strategy.save_checkpoint(tmp_path)
    assert checkpoint.newest(tmp_path).position == found.position


def test_a_save_by_an_earlier_callback_has_the_place_in_fit(tmp_path):
    class Stops(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 3:
                strategy.save_checkpoint(tmp_path)
                raise KeyboardInterrupt

    strategy, model = _restarted(built=True)
    model.fit(**DATA)
    expected = model.get_weights()
    strategy, model = _restarted()
    with pytest.raises(KeyboardInterrupt):
        model.fit(**DATA, callbacks=[Stops(), SaveAndResume(strategy, tmp_path)])
    assert checkpoint.newest(tmp_path).position == {"epoch": 0, "batch": 4}
    strategy, model = _restarted()
    resume = SaveAndResume(strategy, tmp_path)
    model.fit(**DATA, callbacks=[resume])
    for found, weight in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(found, weight, rtol=1e-6)
    model.fit(**DATA, callbacks=[resume])  # which is a whole one again
    assert checkpoint.newest(tmp_path).step == 12


L = keras.layers


class Own(L.Layer):
    """Has weights that Keras names, and one whose name has the layer's in it."""

    def build(self, shape):
        self.a = self.add_weight((4,), "ones")
        self.b = self.add_weight((4,), "ones", name=f"{self.name}_b")
        self.seed = keras.random.SeedGenerator(1)

    def call(self, x):
        return x * self.a + self.b


def _nested(*more):
    inner = keras.Sequential([keras.Input((4,)), L.Dense(4), Own(), L.Dropout(0.5)])
    return [inner, Own(), *more, L.Dense(6)]


def _built(make):
    """A model in a process that has built others before."""
    strategy = ZeroStrategy()
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), *make()])
        model.compile(strategy.optimizer(keras.optimizers.Adam(0.1)), "mse")
    return strategy, model


def test_a_model_built_again_in_the_same_process_goes_on(tmp_path):
    first, second = _built(_nested), _built(_nested)
    assert [v.path for v in first[1].variables] != [v.path for v in second[1].variables]
    first[1].fit(X, X @ np.ones((4, 6)), verbose=0)
    first[0].save_checkpoint(tmp_path)
    second[0].restore_checkpoint(tmp_path)
    for found, expected in zip(second[1].variables, first[1].variables, strict=True):
        np.testing.assert_array_equal(found, expected)
    slots = first[1].optimizer.variables
    for found, expected in zip(second[1].optimizer.variables, slots, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_several_models_have_names_of_their_own(tmp_path):
    for steps in 2, 0:  # saves, and then restores
        keras.Sequential([L.Dense(1)])  # which counts
        strategy = ZeroStrategy()
        with strategy.scope():
            models = [keras.Sequential([keras.Input((4,)), L.Dense(1)]) for _ in range(2)]
            for model in models:
                model.compile(strategy.optimizer(keras.optimizers.Adam(0.1)), "mse")
        for _ in range(steps):
            models[1].train_on_batch(X, X[:, :1])
        if steps:
            strategy.save_checkpoint(tmp_path)
            expected = [model.get_weights() for model in models]
    assert strategy.restore_checkpoint(tmp_path) == 2
    assert [int(model.optimizer.iterations) for model in models] == [0, 2]
    for model, weights in zip(models, expected, strict=True):
        for found, weight in zip(model.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(found, weight)


def test_another_models_checkpoint_is_refused(tmp_path):
    strategy, _ = _restarted(keras.Input((4,)), L.Dense(6, use_bias=False))
    strategy.save_checkpoint(tmp_path)
    for features, units in (6, 4), (4, 5):
        strategy, model = _restarted(keras.Input((features,)), L.Dense(units, use_bias=False))
        before = model.get_weights()
        message = rf"dense/kernel' of shape \(4, 6\), .* of shape \({features}, {units}\)"
        with pytest.raises(CheckpointError, match=message):
            strategy.restore_checkpoint(tmp_path)
        np.testing.assert_array_equal(model.get_weights(), before)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (lambda: _nested(L.Dense(4)), r"no 'model/dense_1/kernel' of shape \(4, 6\)"),
        (lambda: _nested()[1:], r"has 'model/sequential/dense/kernel' .*, which the model has not"),
        (
            lambda: [*_nested()[:-1], L.Dense(6, name="head")],
            "no 'model/head/kernel' .* has 'model/dense/kernel' .*, which the model has not",
        ),
        (lambda: _nested(L.Dropout(0.5)), "no 'seed/dropout/seed_generator_state'"),
    ],
)
def test_another_structures_checkpoint_is_refused(tmp_path, layers, message):
    _built(_nested)[0].save_checkpoint(tmp_path)
    strategy, _ = _built(layers)
    with pytest.raises(CheckpointError, match=message):
        strategy.restore_checkpoint(tmp_path)


def test_a_model_with_layers_frozen_since_goes_on(tmp_path):
    def frozen():
        layers = _nested()
        layers[0].trainable = False
        return layers

    strategy, model = _built(_nested)
    strategy.save_checkpoint(tmp_path)
    strategy, other = _built(frozen)
    strategy.restore_checkpoint(tmp_path)
    for found, weight in zip(other.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(found, weight)


def test_a_model_that_is_not_built_is_refused(tmp_path):
    strategy, model = _restarted(keras.layers.Dense(1))
    with pytest.raises(CheckpointError, match="'sequential' is not built: .* keras.Input"):
        strategy.save_checkpoint(tmp_path)
    model.fit(**DATA, callbacks=[SaveAndResume(strategy, tmp_path)])
    strategy, model = _restarted(keras.layers.Dense(1))
    with pytest.raises(CheckpointError, match="'sequential' is not built: .* keras.Input"):
        model.fit(**DATA, epochs=2, callbacks=[SaveAndResume(strategy, tmp_path)])
    with strategy.scope():
        model.build((None, 4))
    model.fit(**DATA, epochs=2, callbacks=[SaveAndResume(strategy, tmp_path)])
    assert int(model.optimizer.iterations) == 12


def test_a_strategy_without_a_model_is_refused(tmp_path):
    strategy = ZeroStrategy()
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(strategy.optimizer(keras.optimizers.SGD(0.1)), "mse")
    for refused in (
        lambda: strategy.save_checkpoint(tmp_path),
        lambda: strategy.restore_checkpoint(tmp_path),
        lambda: model.fit(**DATA, callbacks=[SaveAndResume(strategy, tmp_path)]),
    ):
        with pytest.raises(CheckpointError, match="no model, .* compiled in its scope"):
            refused()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "`every`: expected at least 1 step, received every=0"),
        ({"keep": 0}, "`keep`: expected at least 1 checkpoint, received keep=0"),
    ],
)
def test_arguments(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        SaveAndResume(None, tmp_path, **arguments)
