"""Run in every worker: `fit` as people know it. `python fitting.py FOLDER STAGE`."""

import contextlib
import gc
import io
import os
import sys
import warnings
from pathlib import Path

from revkeras.distribute import ZeroStrategy, membership

folder, stage = Path(sys.argv[1]), int(sys.argv[2])
strategy = ZeroStrategy(stage, shard_bytes=400)

import keras  # noqa: E402  the engine comes before all that makes tensors
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import tensorflow as tf  # noqa: E402

from tests.compiling import compiled  # noqa: E402
from tests.distribute import cases  # noqa: E402

L = keras.layers
x, y = (np.concatenate(parts) for parts in zip(*cases.batches()))


def equal_on_all(value):
    values = membership.exchange(value)
    assert all(other == values[0] for other in values), values
    return values[0]


def batches(n_rows=480, size=24):
    return tf.data.Dataset.from_tensor_slices((x[:n_rows], y[:n_rows])).batch(size)


def build(*layers):
    return keras.Sequential([keras.Input((10,)), L.Dense(10), *layers, *cases.stack().layers])


def as_one_process():
    """Each epoch has the logs of one process that reads all rows, and the weights are its."""
    alone = cases.stack()
    with strategy.scope():
        model = cases.stack()
    alone.set_weights(model.get_weights())

    def train(model, optimizer, shard, callbacks):
        callbacks = [*callbacks, keras.callbacks.ReduceLROnPlateau(patience=0, min_delta=0.05)]
        compiled(model, optimizer, metrics=["mae"], jit_compile=False)
        options = {"validation_data": shard(batches(96)), "callbacks": callbacks}
        history = model.fit(shard(batches(96)), epochs=3, verbose=0, **options)
        return history.history, model.get_weights()

    expected = train(alone, keras.optimizers.SGD(0.1), lambda data: data, [])
    with strategy.scope():
        optimizer = strategy.optimizer(keras.optimizers.SGD(0.1))
        found = train(model, optimizer, strategy.shard, strategy.callbacks())
    for ours, theirs in zip(keras.tree.flatten(found), keras.tree.flatten(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def logs_and_callbacks():
    with strategy.scope():
        model = build(L.BatchNormalization(), L.Dropout(0.2))
        optimizer = strategy.optimizer(keras.optimizers.AdamW(1e-2))
        model.compile(optimizer, "mse", metrics=["mae", keras.metrics.R2Score()])
    printed = io.StringIO()
    log = folder / "log.csv"
    with contextlib.redirect_stdout(printed):
        history = model.fit(
            strategy.shard(batches(240)),
            epochs=6,
            validation_data=strategy.shard(batches(96)),
            callbacks=[
                *strategy.callbacks(),
                keras.callbacks.EarlyStopping(patience=1, min_delta=0.05),
                keras.callbacks.ReduceLROnPlateau(patience=1, min_delta=0.05),
                keras.callbacks.ModelCheckpoint(folder / "best.keras", save_best_only=True),
                keras.callbacks.CSVLogger(log),
            ],
        )
    assert ("Epoch 1" in printed.getvalue()) == (strategy.rank == 0)
    equal_on_all({k: [float(v) for v in values] for k, values in history.history.items()})
    assert len(log.read_text().splitlines()) == len(history.epoch) + 1
    found = model.evaluate(strategy.shard(batches(96)), return_dict=True, verbose=0)
    equal_on_all(found)
    whole = keras.models.load_model(folder / "best.keras")
    alone = whole.evaluate(batches(96), return_dict=True, verbose=0)
    best = min(history.history["val_loss"])
    np.testing.assert_allclose(alone["loss"], best, rtol=1e-5)
    # Statistics are alike on all ranks, seeds are not.
    state = {v.path: v.numpy().tolist() for v in model.non_trainable_variables}
    seeds = {path: state.pop(path) for path in list(state) if "seed" in path}
    equal_on_all(state)
    assert len({str(other) for other in membership.exchange(seeds)}) == strategy.size
    return model


def files(model):
    """Ordinary files, the optimizer's state included, that load again into a sharded model."""
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    weights = [w.tolist() for w in model.get_weights()]
    equal_on_all(weights)
    alone = keras.models.load_model(folder / "model.keras")
    assert type(alone.optimizer) is keras.optimizers.AdamW
    assert int(alone.optimizer.iterations) == int(model.optimizer.iterations)
    with strategy.scope():
        again = keras.models.load_model(folder / "model.keras")
    rows = slice(strategy.rank * 24 // strategy.size, (strategy.rank + 1) * 24 // strategy.size)
    for layer in (*model._flatten_layers(), *alone._flatten_layers(), *again._flatten_layers()):
        if isinstance(layer, L.Dropout):
            layer.rate = 0.0
        if isinstance(layer, L.BatchNormalization):
            layer.trainable = False
    for other in (model, alone, again):
        other.optimizer.learning_rate = 1e-3
        other.train_function = None
    for _ in range(2):
        model.train_on_batch(x[:24][rows], y[:24][rows])
        again.train_on_batch(x[:24][rows], y[:24][rows])
        alone.train_on_batch(x[:24], y[:24])
    for found, other, expected in zip(
        model.get_weights(), again.get_weights(), alone.get_weights()
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(other, expected, rtol=1e-4, atol=1e-5)


def exported(model):
    """A SavedModel with whole weights, also of a model that goes on to train."""
    for _ in range(2):
        model.fit(strategy.shard(batches(48)), verbose=0)
        model.export(folder / "exported", verbose=False)
    expected = model.predict(x[:24], verbose=0)
    if strategy.rank == 0:
        loaded = tf.saved_model.load(str(folder / "exported"))
        np.testing.assert_allclose(loaded.serve(x[:24]), expected, rtol=1e-5, atol=1e-5)


def late_building():
    """A model without an input shape is built by its first batch, and is the same on all ranks."""
    keras.utils.set_random_seed(strategy.rank)
    with strategy.scope():
        model = keras.Sequential([L.Dense(40), L.Dense(3)])
        model.compile(strategy.optimizer(keras.optimizers.SGD(0.1)), "mse")
    model.fit(strategy.shard(batches(96)), verbose=0)
    equal_on_all([w.tolist() for w in model.get_weights()])
    model.set_weights([w * 0 for w in model.get_weights()])
    model.fit(strategy.shard(batches(96)), verbose=0)  # which starts from what was set
    equal_on_all([w.tolist() for w in model.get_weights()])
    assert float(np.abs(model.get_weights()[-2]).max()) == 0  # nothing reaches it through zeros


def compiled_again():
    """Frozen, compiled, thawed, compiled again; and a second model that shares the layers."""
    rows = slice(strategy.rank * 24 // strategy.size, (strategy.rank + 1) * 24 // strategy.size)
    alone = cases.stack()
    other_alone = keras.Sequential([*alone.layers[:2], L.Dense(3)])
    with strategy.scope():
        model = cases.stack()
        other = keras.Sequential([*model.layers[:2], L.Dense(3)])
        other.build((None, 10))
    other_alone.build((None, 10))
    for ours, theirs in (model, alone), (other, other_alone):
        theirs.set_weights(ours.get_weights())
    for ours, theirs, frozen in (
        (model, alone, True),
        (model, alone, False),
        (other, other_alone, False),
    ):
        ours.layers[0].trainable = theirs.layers[0].trainable = not frozen
        compiled(theirs, keras.optimizers.Muon(1e-2), jit_compile=False)
        with strategy.scope():
            compiled(ours, strategy.optimizer(keras.optimizers.Muon(1e-2)))
        for _ in range(2):
            ours.train_on_batch(x[:24][rows], y[:24][rows])
            theirs.train_on_batch(x[:24], y[:24])
        for found, expected in zip(ours.get_weights(), theirs.get_weights()):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    gc.collect()
    for v in model.variables:  # one follows for each model
        assert sum(f() is not None for f, _ in getattr(v, "_followers", ())) <= 2


class Counting(L.Layer):
    """Has a state that is a mean over the workers."""

    def build(self, shape):
        self.calls = self.add_weight((), "zeros", trainable=False, aggregation="mean")

    def call(self, x, training=False):
        if training:
            self.calls.assign(self.calls + 1)
        return x


def states_that_are_means():
    with strategy.scope():
        model = keras.Sequential([keras.Input((10,)), Counting(), L.Dense(3)])
        compiled(model, strategy.optimizer(keras.optimizers.SGD(0.1)))
    for _ in range(3):
        model.train_on_batch(x[:24], y[:24])
    assert equal_on_all(float(model.layers[0].calls.numpy())) == 3


class Rows(keras.utils.PyDataset):
    def __init__(self, count):
        super().__init__()
        self._count = count

    def __len__(self):
        return self._count

    def __getitem__(self, i):
        return x[24 * i : 24 * i + 24], y[24 * i : 24 * i + 24]


def datasets():
    parts = membership.exchange([b[0].numpy().tolist() for b in strategy.shard(batches(100))])
    counts = [[len(batch) for batch in part] for part in parts]
    per_rank = 24 // strategy.size
    assert counts == [[per_rank] * 4 + [4 // strategy.size]] * strategy.size
    merged = np.concatenate([np.concatenate(step) for step in zip(*parts)])
    np.testing.assert_allclose(merged[:96], x[:96], rtol=1e-6)
    arrays = membership.exchange([b[0].tolist() for b in strategy.shard((x, y), batch_size=24)])
    rows = np.concatenate([np.concatenate(part) for part in arrays])
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, x.tolist()))

    with strategy.scope():
        model = compiled(cases.dense(), strategy.optimizer(keras.optimizers.SGD(0.1)))
    equal_on_all(model.fit(strategy.shard(Rows(5)), verbose=0, epochs=2).history)
    refused = {
        "knows how many batches": batches().filter(lambda a, b: True),
        "shuffles": batches()
        .unbatch()
        .apply(tf.data.experimental.assert_cardinality(480))
        .shuffle(10)
        .batch(24),
        "multiple of the number of workers": batches(size=25),
        "can have an equal part": (pair for pair in [(x, y)]),
        "Rank 1 has the number of the dataset's batches=19": batches(480 - 24 * strategy.rank),
        "Rank 1 has the rows of its batches=48": batches(size=24 + 24 * strategy.rank),
        "Rank 1 has the number of the dataset's batches=6": Rows(5 + strategy.rank),
        "Rank 1 has the number of the arrays' rows=64": (x[: 32 + 32 * strategy.rank],),
    }
    for message, dataset in refused.items():
        refuses(message, strategy.shard, dataset)


def whole_batches():
    """What `shard` did not make is trained on as a whole by each; rank 0 says so."""
    with strategy.scope():
        model = compiled(cases.dense(), strategy.optimizer(keras.optimizers.SGD()))
    own = strategy.shard(batches(48))
    arrays = strategy.shard((x[:48], y[:48]))
    for data, warns in (own, False), (own.prefetch(2), False), (arrays, False), (batches(48), True):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            model.fit(data, verbose=0)
        told = any("`strategy.shard` did not make" in str(w.message) for w in found)
        assert told == (warns and strategy.rank == 0), [str(w.message) for w in found]


def errors():
    with strategy.scope():
        model = cases.dense()
        refuses("that the strategy made", model.compile, "adam", "mse")
        other = ZeroStrategy(stage)
        adam = keras.optimizers.Adam
        refuses("of another strategy", model.compile, other.optimizer(adam()), "mse")
        refuses(
            "expected 'auto' or False",
            model.compile,
            strategy.optimizer(adam()),
            "mse",
            jit_compile=True,
        )
        refuses("one strategy for all", lambda: other.scope().__enter__())
    outside = cases.dense()
    with strategy.scope():
        refuses(
            "in whose scope it was not built", outside.compile, strategy.optimizer(adam()), "mse"
        )
    with strategy.scope():
        model = cases.dense()
        model.compile(strategy.optimizer(adam()), "mse")
    train = model.fit, strategy.shard(batches(48))
    refuses("Rank 1 has `fit`'s epochs='2'", *train, epochs=1 + strategy.rank)
    for message, callback in {
        "SaveAndResume": keras.callbacks.BackupAndRestore(folder / "backup"),
        "ends with the averages": keras.callbacks.SwapEMAWeights(),
        "histogram_freq=0, or use stage 2": keras.callbacks.TensorBoard(folder, histogram_freq=1),
        "use keras.callbacks.ModelCheckpoint": keras.callbacks.TensorBoard(
            folder, embeddings_freq=1
        ),
    }.items():
        refuses(message, *train, callbacks=[callback])
    with strategy.scope():
        clipping = adam(global_clipnorm=0.1 if strategy.rank else None)
        message = "Rank 1 has the optimizer's global_clipnorm=0.1"
        refuses(message, model.compile, strategy.optimizer(clipping), "mse")
        model = cases.dense()
    model.compile(strategy.optimizer(adam()), "mse")
    refuses("outside of the strategy's scope", model.train_on_batch, x[:24], y[:24])
    with strategy.scope():
        model = cases.dense()
        model.compile(strategy.optimizer(adam()), "mse")
        layer = L.Dense(3 + strategy.rank)
        refuses("Rank 1 has .*kernel", layer.build, (None, 4))
    n = 4 + strategy.rank
    refuses("The workers do not train the same", model.train_on_batch, x[:n], y[:n])


def refuses(message, function, *args, **kwargs):
    with pytest.raises((ValueError, TypeError), match=message):
        function(*args, **kwargs)


os.makedirs(folder, exist_ok=True)
model = logs_and_callbacks()
files(model)
exported(model)
late_building()
as_one_process()
compiled_again()
if stage == 3:
    states_that_are_means()
    datasets()
    whole_batches()
    errors()
strategy.engine.close()
