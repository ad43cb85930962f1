"""Run in every worker: custom steps, metrics and layers. `python customized.py FOLDER`."""

import sys
import time
from pathlib import Path

from revkeras.distribute import CheckpointError, ZeroStrategy, membership

folder = Path(sys.argv[1])
strategy = ZeroStrategy(2)

import keras  # noqa: E402  the engine comes before all that makes tensors
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import tensorflow as tf  # noqa: E402

from tests.distribute import cases  # noqa: E402

L = keras.layers
BATCH = 24
x, y = (np.concatenate(parts) for parts in zip(*cases.batches()))
batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)


def equal_on_all(value):
    values = membership.exchange(value)
    assert all(other == values[0] for other in values), values
    return values[0]


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
        model.compile(strategy.optimizer(keras.optimizers.SGD(0.1)))
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
        model.compile(optimizer, "mse", metrics=[Aggregated()])
    expected = {"sum": 14, "mean": 7, "none": 7, "only_first_replica": 2}
    found = model.fit(strategy.shard(batches), verbose=0).history
    for name, number in expected.items():
        for dtype in "float32", "int32":
            assert equal_on_all(float(found[f"{name}_{dtype}"][0])) == number, name
    assert equal_on_all(float(found["flag"][0])) == 1
    assert equal_on_all(float(found["seven"][0])) == 7


def reading(n_parts=4, **options):
    """Batches of rows from several parts, as of files; the options are the shuffle's."""

    def part(i):
        rows = tf.data.Dataset.from_tensor_slices((x, y)).shard(n_parts, i)
        return rows.shuffle(100, **options)

    rows = tf.data.Dataset.range(n_parts).interleave(part)
    return rows.batch(BATCH).apply(tf.data.experimental.assert_cardinality(len(x) // BATCH))


def racing(deterministic):
    """Rows of which some come late, others on each worker."""

    def late(i):
        time.sleep(0.05 * (i == strategy.rank))
        return i

    def row(i):
        i = tf.ensure_shape(tf.numpy_function(late, [i], tf.int64), ())
        return tf.gather(x, i), tf.gather(y, i)

    options = tf.data.Options()
    options.threading.private_threadpool_size = 4
    rows = tf.data.Dataset.range(len(x)).with_options(options)
    rows = rows.map(row, num_parallel_calls=4, deterministic=deterministic)
    return rows.prefetch(1).batch(BATCH)  # TensorFlow makes one of `map` and `batch`, in order


class Read(keras.utils.PyDataset):
    """Threads read it while others change the order."""

    def __init__(self):
        super().__init__(workers=2)

    def __len__(self):
        return len(x) // BATCH

    def __getitem__(self, i):
        return x[BATCH * i : BATCH * (i + 1)], y[BATCH * i : BATCH * (i + 1)]


class Once:
    """Gives its batches a single time."""

    def __init__(self):
        self._batches = iter(cases.batches())

    def __call__(self):
        yield from self._batches


def different_data():
    """All ranks refuse to train where they would read different batches, and name the ranks."""
    with strategy.scope():
        model = cases.one_layer()
        model.compile(strategy.optimizer(keras.optimizers.SGD(0.1)), "mse")
    refused = {
        "shuffle": lambda: reading(),
        "map": lambda: racing(deterministic=False),
        "arrays": lambda: (x + strategy.rank, y),
    }
    for name, make in refused.items():
        with pytest.raises(ValueError, match="rank 1 received other values than rank 0") as error:
            model.fit(strategy.shard(make()), verbose=0)
        membership.agree({name: str(error.value)})
    keras.utils.set_random_seed(7)
    spec = tf.TensorSpec((BATCH, 10)), tf.TensorSpec((BATCH, 3))
    once = tf.data.Dataset.from_generator(Once(), output_signature=spec)
    taken = {
        "one seed for all": reading(),
        "its own seed": reading(seed=3),
        "in order": racing(deterministic=True),
        "read once": once.apply(tf.data.experimental.assert_cardinality(len(x) // BATCH)),
        "endless": batches.repeat(),
        "threads": Read(),
        "augmented": batches,
    }
    for name, dataset in taken.items():
        part = strategy.shard(dataset)
        if name == "augmented":
            part = part.map(lambda x, y: (x + float(strategy.rank), y))
        steps = 3 if name == "endless" else None
        history = model.fit(part, verbose=0, epochs=1 + (name == "threads"), steps_per_epoch=steps)
        equal_on_all(history.history["loss"])


class GAN(keras.Model):
    """As in Keras's guide: an optimizer for each part, and no `call()`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.generator = part("generator", 10, 9, 3)
        self.discriminator = part("discriminator", 3, 11, 1)
        self.g_loss = keras.metrics.Mean("g_loss")

    @property
    def metrics(self):
        return [self.g_loss]

    def compile(self, d_optimizer, g_optimizer):
        super().compile()
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer

    def train_step(self, data):
        noise, real = data
        discriminator, generator = self.discriminator, self.generator
        with tf.GradientTape() as tape:
            d_loss = loss(discriminator(real), 1) + loss(discriminator(generator(noise)), 0)
        weights = discriminator.trainable_weights
        self.d_optimizer.apply_gradients(zip(tape.gradient(d_loss, weights), weights))
        with tf.GradientTape() as tape:
            g_loss = loss(discriminator(generator(noise)), 1)
        weights = generator.trainable_weights
        self.g_optimizer.apply_gradients(zip(tape.gradient(g_loss, weights), weights))
        self.g_loss.update_state(g_loss)
        return {"d_loss": d_loss, "g_loss": self.g_loss.result()}


def part(name, n_in, width, n_out):
    layers = [L.Dense(width, "tanh", name=f"{name}_1"), L.Dense(n_out, name=f"{name}_2")]
    return keras.Sequential([keras.Input((n_in,)), *layers], name=name)


def loss(logits, label):
    label = keras.ops.full_like(logits, label)
    return keras.ops.mean(keras.ops.binary_crossentropy(label, logits, from_logits=True))


def several_optimizers():
    """A GAN ends with the weights of one process; a checkpoint holds both optimizers' states."""
    make = [lambda: keras.optimizers.Adam(1e-2, beta_1=0.5), lambda: keras.optimizers.Muon(1e-2)]
    for stage in 2, 3:
        sharding = ZeroStrategy(stage, shard_bytes=100)
        alone = GAN()
        with sharding.scope():
            model, again = GAN(), GAN()
            model.compile(*(sharding.optimizer(new()) for new in make))
        for part in "generator", "discriminator":
            getattr(alone, part).set_weights(getattr(model, part).get_weights())
        alone.compile(*(new() for new in make))
        alone.jit_compile = False
        model.save(folder / "gan.keras")  # with optimizers that are not built yet
        expected = alone.fit(batches.take(6), verbose=0).history
        found = model.fit(sharding.shard(batches.take(6)), verbose=0).history
        for name in expected:
            np.testing.assert_allclose(equal_on_all(found[name]), expected[name], rtol=1e-4)
        close(model, alone)
        model.save(folder / "gan.keras")
        close(keras.models.load_model(folder / "gan.keras", {"GAN": GAN}), alone)
        checkpoints = folder / f"stage-{stage}"
        sharding.save_checkpoint(checkpoints)
        sharding.models.clear()
        with sharding.scope():
            again.compile(*(sharding.optimizer(new()) for new in make))
        with pytest.raises(CheckpointError, match="`d_optimizer`, `g_optimizer` will update"):
            sharding.restore_checkpoint(checkpoints)
        again.d_optimizer.build(again.discriminator.trainable_variables)
        again.g_optimizer.build(again.generator.trainable_variables)
        assert sharding.restore_checkpoint(checkpoints) == 6
        alone.fit(batches.take(2), verbose=0)
        again.fit(sharding.shard(batches.take(2)), verbose=0)
        close(again, alone)
    with strategy.scope():
        model = GAN()
        model.compile(strategy.optimizer(make[0]()), make[0]())
    with pytest.raises(ValueError, match="`g_optimizer`: expected one that the strategy made"):
        model.fit(strategy.shard(batches), verbose=0)


def close(found, expected):
    for part in "generator", "discriminator":
        weights = (getattr(model, part).get_weights() for model in (found, expected))
        for a, b in zip(*weights):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


logs_of_custom_steps()
aggregations()
different_data()
several_optimizers()
strategy.engine.close()
