"""A dataset's iterator at the place where an interrupted training was."""

import warnings

import tensorflow as tf

from revkeras._engine.tensorflow._private import dataset_of
from revkeras._keras import epoch_iterator


def iterator_at(iterator: tf.data.Iterator, epoch: int, steps: int | None) -> tf.data.Iterator:
    """Returns the iterator that `fit` would have had at the start of an epoch.

    Args:
        iterator: The iterator that `fit` made for its first epoch.
        epoch: Integer, the epoch's number.
        steps: Integer, how many batches an epoch has; `None` if it is not known.

    Raises:
        ValueError: if epochs end inside the dataset, so that the place is not known.
    """
    dataset = dataset_of(iterator)
    batches = int(dataset.cardinality())
    if batches == tf.data.INFINITE_CARDINALITY:  # one iterator goes through all epochs
        for _ in range(epoch * (steps or 0)):
            next(iterator)
        return iterator
    if steps is not None and batches not in (tf.data.UNKNOWN_CARDINALITY, steps):
        raise ValueError(
            f"Cannot resume in epoch {epoch}: the dataset has {batches} batches and `fit` takes "
            f"steps_per_epoch={steps} of them an epoch, so epochs end inside it. Expected a "
            "dataset that repeats without end (`dataset.repeat()`), or no `steps_per_epoch`."
        )
    # What is shuffled anew each time comes in the order of the times before.
    for _ in range(_iterators_before(epoch, known=batches >= 0)):
        iterator = iter(dataset)
    return iterator


def _iterators_before(epoch: int, known: bool) -> int:
    """How many iterators `fit` makes, beyond its first, for epochs before this one and for it.

    Keras makes more than one an epoch where it knows how many batches there are, so it
    is asked, with a dataset of one batch.
    """
    dataset = tf.data.Dataset.range(1)
    made = 0

    def count() -> None:
        nonlocal made
        made += 1

    dataset = dataset if known else dataset.filter(lambda _: True)
    epochs = epoch_iterator(dataset, tf.distribute.get_strategy(), count)
    for at in range(epoch + 1):
        with warnings.catch_warnings(), epochs.catch_stop_iteration():
            warnings.simplefilter("ignore")  # of data that ran out
            for *_, iterator in epochs:  # Keras 3.10 gives a pair
                if at == epoch:
                    return made - 1
                next(iterator)
    return made - 1
