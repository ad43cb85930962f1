"""Workers that read other data, and those that read the same; `customized.py` runs it."""

from tests.distribute.together import BATCH, batches, equal_on_all, pairs, strategy, x, y  # isort: skip

import time

import keras
import pytest
import tensorflow as tf

from revkeras.distribute import membership
from tests.compiling import compiled
from tests.distribute import cases


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
        self._batches = iter(pairs)

    def __call__(self):
        yield from self._batches


def different_data():
    """All ranks refuse to train where they would read different batches, and name the ranks."""
    with strategy.scope():
        model = compiled(cases.one_layer(), strategy.optimizer(keras.optimizers.SGD(0.1)))
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
