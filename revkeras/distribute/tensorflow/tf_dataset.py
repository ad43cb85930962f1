"""A rank's part of a `tf.data.Dataset`."""

from typing import Any

import tensorflow as tf

from revkeras._engine.tensorflow._private import batch_sizes, shuffle_seeds
from revkeras._engine.tensorflow._private import parts as parts
from revkeras.distribute.first_batches import COUNT, FirstBatches


def is_dataset(data: Any) -> bool:
    """Whether `data` is a `tf.data.Dataset`."""
    return isinstance(data, tf.data.Dataset)


def rows_of_rank(
    dataset: tf.data.Dataset, rank: int, size: int, first: FirstBatches
) -> tf.data.Dataset:
    """The rank's rows of each batch; `first` takes note of the first whole batches.

    Rows that are not enough for one more a rank are left out; of fewer rows than ranks, each
    takes all.
    """

    def note(index: Any, *tensors: Any) -> Any:
        first.note(int(index), tensors)
        return index

    def noted(index: tf.Tensor, batch: Any) -> tuple:
        tensors = [index, *tf.nest.flatten(batch, expand_composites=True)]
        tf.cond(
            index < COUNT,
            lambda: tf.numpy_function(note, tensors, tf.int64),
            lambda: index,
        )
        return index + 1, batch

    def rows(x: tf.Tensor) -> tf.Tensor:
        n = tf.shape(x)[0]
        step = tf.where(n < size, n, n // size)
        start = tf.where(n < size, 0, rank * step)
        return x[start : start + step]

    def take(*batch: Any) -> Any:
        batch = tf.nest.map_structure(rows, batch)
        return batch if len(batch) > 1 else batch[0]

    dataset = dataset.scan(tf.constant(0, tf.int64), noted)
    dataset = dataset.map(take, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.prefetch(tf.data.AUTOTUNE)


def rows_if_even(dataset: tf.data.Dataset, size: int) -> int:
    """The rows of its batches.

    Raises:
        ValueError: if ranks would not get equally many batches, of one size, in one order.
    """
    if int(dataset.cardinality()) == tf.data.UNKNOWN_CARDINALITY:
        raise ValueError(
            "Invalid value for argument `dataset`: expected one that knows how many batches it "
            "has, as all workers need the same number; received one that was filtered or comes "
            "from a generator. Tell it by "
            "`dataset.apply(tf.data.experimental.assert_cardinality(n))`."
        )
    if [0, 0] in shuffle_seeds(dataset):
        raise ValueError(
            "Invalid value for argument `dataset`: expected the same order on all workers, "
            "received one that shuffles without a seed. Use `dataset.shuffle(n, seed=7)`, or call "
            "`keras.utils.set_random_seed(7)` before it is made."
        )
    rows = _batch_size(dataset)
    if rows is None or rows % size:
        found = "none (call `dataset.batch(n)` on one of single rows)" if rows is None else rows
        raise ValueError(
            "Invalid value for argument `dataset`: expected batches whose size is a multiple of "
            f"the number of workers, {size}, as each gets an equal part; received batch size "
            f"{found}."
        )
    return rows


def _batch_size(dataset: tf.data.Dataset) -> int | None:
    """The rows of a full batch; `None` if the elements are no batches."""
    shapes = [spec.shape for spec in tf.nest.flatten(dataset.element_spec)]
    if not shapes or any(shape.rank == 0 for shape in shapes):
        return None
    known = {shape[0] for shape in shapes if shape.rank and shape[0] is not None}
    if known:
        return known.pop() if len(known) == 1 else None
    if sizes := batch_sizes(dataset):
        return sizes[0]
    first = tf.nest.flatten(next(iter(dataset.take(1))))
    return int(first[0].shape[0])
