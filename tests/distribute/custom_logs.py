"""Logs and metrics of custom steps, on several workers; `customized.py` runs it."""

from tests.distribute.together import BATCH, batches, equal_on_all, strategy, x, y  # isort: skip

import keras
import numpy as np
import tensorflow as tf

from tests.compiling import compiled
from tests.distribute import cases

L = keras.layers


class OwnSteps(keras.Model):
    """Returns what only this rank's rows tell, beside what metrics return."""

    def __init__(self):
        super().__init__()
        self.dense = L.Dense(3)
        self.r2 = keras.metrics.R2Score()

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            predicted = self(x)
            loss = keras.ops.mean(keras.ops.square(predicted - y))
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        return self.logs(x, y, predicted)

    def test_step(self, data):
        return self.logs(*data, self(data[0]))

    def logs(self, x, y, predicted):
        self.r2.update_state(y, predicted)
        error = keras.ops.square(predicted - y)
        return {
            "mse": keras.ops.mean(error),
            "nested": {"of_rows": keras.ops.mean(error, axis=-1), "first": x[0, 0]},
            "rows": keras.ops.shape(x)[0],
            "r2_so_far": self.r2.result(),
        }


def logs_of_custom_steps():
    """All that steps return is the same on all ranks, and so is what callbacks make of it."""
    with strategy.scope():
        model = OwnSteps()
        model.build((None, 10))
        compiled(model, strategy.optimizer(keras.optimizers.SGD(0.1)), loss=None)
    seen = Seen()
    plateau = {"mode": "min", "patience": 1, "factor": 0.5, "min_delta": 1e-2}
    history = model.fit(
        strategy.shard(batches),
        validation_data=strategy.shard(batches.take(3)),
        epochs=8,
        verbose=0,
        callbacks=[
            seen,
            keras.callbacks.ReduceLROnPlateau("mse", **plateau),
            keras.callbacks.EarlyStopping("val_mse", mode="min", patience=1, min_delta=1e-2),
        ],
    )
    equal_on_all(len(history.epoch))
    equal_on_all(seen.logs)
    equal_on_all([float(rate) for rate in history.history["learning_rate"]])
    # Of all rows, which a mean of the ranks' values is not for R2.
    logs = model.evaluate(strategy.shard(batches.take(1)), return_dict=True, verbose=0)
    predicted = model.predict(x[:BATCH], verbose=0)
    r2 = keras.metrics.R2Score()
    r2.update_state(y[:BATCH], predicted)
    np.testing.assert_allclose(logs["r2_so_far"], r2.result(), rtol=1e-5)
    np.testing.assert_allclose(logs["mse"], np.mean((predicted - y[:BATCH]) ** 2), rtol=1e-5)
    assert logs["rows"] == BATCH / strategy.size


class Seen(keras.callbacks.Callback):
    """The logs of all batches and epochs."""

    def __init__(self):
        super().__init__()
        self.logs = []

    def see(self, at, logs=None):
        self.logs.append({name: np.asarray(value).tolist() for name, value in logs.items()})

    on_train_batch_end = on_test_batch_end = on_epoch_end = see


class Aggregated(keras.metrics.Metric):
    """Holds numbers that differ between ranks, and one that does not."""

    AGGREGATIONS = "sum", "mean", "none", "only_first_replica"

    def __init__(self):
        super().__init__(name="aggregated")
        self.numbers = {
            f"{aggregation}_{dtype}": self.add_variable(
                (), "zeros", aggregation=aggregation, dtype=dtype, name=aggregation
            )
            for aggregation in self.AGGREGATIONS
            for dtype in ("float32", "int32")
        }
        self.flag = self.add_variable((), "zeros", aggregation="none", dtype="bool", name="flag")
        self.seven = keras.Variable(7.0, trainable=False)

    def update_state(self, *_, **__):
        for v in self.numbers.values():
            v.assign(10 * strategy.rank + 2)
        self.flag.assign(True)
        self.seven.assign(7.0)

    def result(self):
        numbers = {name: v * 1 for name, v in self.numbers.items()}
        return {**numbers, "flag": self.flag, "seven": self.seven}  # as variables


def aggregations():
    """A metric's variables are one number each on all ranks, as their `aggregation` says."""
    with strategy.scope():
        model = cases.one_layer()
        optimizer = strategy.optimizer(keras.optimizers.SGD(0.1))
        compiled(model, optimizer, metrics=[Aggregated()])
    expected = {"sum": 14, "mean": 7, "none": 7, "only_first_replica": 2}
    found = model.fit(strategy.shard(batches), verbose=0).history
    for name, number in expected.items():
        for dtype in "float32", "int32":
            assert equal_on_all(float(found[f"{name}_{dtype}"][0])) == number, name
    assert equal_on_all(float(found["flag"][0])) == 1
    assert equal_on_all(float(found["seven"][0])) == 7
