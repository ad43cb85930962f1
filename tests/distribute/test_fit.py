"""`fit`, files, datasets and errors, with real workers."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import revkeras
from revkeras.distribute import ZeroStrategy
from tests.distribute import cases
from tests.distribute.workers import run_workers

SCRIPT = Path(__file__).parent / "fitting.py"


@pytest.mark.parametrize("stage", [2, 3])
def test_fit(tmp_path, stage):
    assert run_workers(SCRIPT, 2, [tmp_path, stage], seconds=300) == 0


def test_one_worker_trains_unsharded():
    found, _ = cases.train(cases.CASES["adamw-3"], ZeroStrategy(stage=3))
    expected, _ = cases.train(cases.CASES["adamw-3"])
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_trained_model_is_exported(tmp_path):
    strategy = ZeroStrategy()
    with strategy.scope():
        model = cases.stack()
        model.compile(strategy.optimizer(keras.optimizers.AdamW()), "mse", metrics=["mae"])
    x, y = cases.batches()[0]
    model.fit(x, y, verbose=0)
    model.export(tmp_path / "exported", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(loaded.serve(x), model(x), rtol=1e-5, atol=1e-6)
    tf.saved_model.save(model, str(tmp_path / "saved"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": 4}, "`stage`: expected 1"),
        ({"engine": "smoke"}, "`engine`: expected one of"),
        ({"bucket_bytes": 0}, "`bucket_bytes`: expected a positive"),
        ({"shard_bytes": 1.5}, "`shard_bytes`: expected a positive"),
        ({"offload": "disk"}, "`offload`: expected None or 'host'"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        ZeroStrategy(**options)


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (lambda: "adam", "expected a Keras optimizer"),
        (lambda: revkeras.FusedUpdate(keras.optimizers.SGD(0.1)), "leaves `apply` to Keras"),
    ],
)
def test_bad_optimizers(inner, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ZeroStrategy().optimizer(inner())
