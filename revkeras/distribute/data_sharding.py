"""Each worker's part of a dataset, in equally many batches for all."""

import random
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from revkeras.distribute import membership
from revkeras.distribute.first_batches import FirstBatches
from revkeras.distribute.tensorflow.tf_dataset import (
    is_dataset,
    parts,
    rows_if_even,
    rows_of_rank,
    shuffle_seeds,
)


def sharded(dataset: Any, rank: int, size: int, batch_size: int | None, first: FirstBatches) -> Any:
    """The rank's part, see `ZeroStrategy.shard`; `first` takes note of the first whole batches."""
    if are_arrays(dataset):
        batch_size = 32 if batch_size is None else batch_size
        rows = len(keras.tree.flatten(dataset)[0])
        membership.agree({"the number of the arrays' rows": rows, "batch_size": batch_size})
        _refuse_remainder(rows, batch_size, size)
        dataset = Batches(dataset, batch_size, _common_seed())
    elif batch_size is not None:
        raise ValueError(
            "Invalid value for argument `batch_size`: expected None for a dataset that has batches "
            f"of its own, received batch_size={batch_size!r}."
        )
    if size == 1:
        return dataset
    if is_dataset(dataset):
        rows = rows_if_even(dataset, size)
        membership.agree(
            {
                "the number of the dataset's batches": int(dataset.cardinality()),
                "the rows of its batches": rows,
                "the seeds by which it shuffles": shuffle_seeds(dataset),
            }
        )
        return rows_of_rank(dataset, rank, size, first)
    if isinstance(dataset, keras.utils.PyDataset):
        if dataset.num_batches is None:
            raise ValueError(
                "Invalid value for argument `dataset`: expected a PyDataset that knows how many "
                "batches it has, as all workers need the same number; received one whose "
                f"`num_batches` is None: {dataset!r}. Define `__len__`."
            )
        membership.agree({"the number of the dataset's batches": dataset.num_batches})
        return RowsOfRank(dataset, rank, size, _common_seed(), first)
    raise ValueError(
        "Invalid value for argument `dataset`: expected a tf.data.Dataset, a "
        "keras.utils.PyDataset, or arrays, of which each worker can have an equal part; received "
        f"dataset={dataset!r} (of type {type(dataset).__name__})."
    )


def sources(data: Any) -> Iterator:
    """A dataset, and those that it is made of."""
    if is_dataset(data):
        yield from parts(data)
    elif isinstance(data, keras.utils.PyDataset):
        yield data


class Batches(keras.utils.PyDataset):
    """Batches of arrays, of other rows each epoch, the same on all ranks with the same seed."""

    def __init__(self, arrays: Any, batch_size: int, seed: int):
        super().__init__()
        self._arrays = keras.tree.map_structure(np.asarray, arrays)
        self._per_batch = batch_size
        self._random = np.random.default_rng(seed)
        self._rows = np.arange(len(keras.tree.flatten(self._arrays)[0]))

    def __len__(self) -> int:
        return -(-len(self._rows) // self._per_batch)

    def __getitem__(self, index: int) -> Any:
        rows = self._rows[index * self._per_batch :][: self._per_batch]
        return keras.tree.map_structure(lambda x: x[rows], self._arrays)

    def on_epoch_begin(self) -> None:
        self._rows = self._random.permutation(len(self._rows))


class RowsOfRank(keras.utils.PyDataset):
    """The rank's rows of each batch of a `PyDataset`.

    Attributes:
        shuffles: Whether the batches come in another order each epoch, as in `fit`. It is
            the same on all ranks, which Keras's own would not be.
    """

    def __init__(
        self,
        dataset: keras.utils.PyDataset,
        rank: int,
        size: int,
        seed: int,
        first: FirstBatches,
    ):
        super().__init__(
            workers=dataset.workers,
            use_multiprocessing=dataset.use_multiprocessing,
            max_queue_size=dataset.max_queue_size,
        )
        self._whole, self._rank, self._size = dataset, rank, size
        self._random, self._first = np.random.default_rng(seed), first
        self.shuffles = False
        self._order = np.arange(len(self))

    def __len__(self) -> int:
        return self._whole.num_batches

    def __getitem__(self, index: int) -> Any:
        batch = self._whole[int(self._order[index])]
        self._first.note(index, keras.tree.flatten(batch))
        return keras.tree.map_structure(self._rows, batch)

    def on_epoch_begin(self) -> None:
        self._whole.on_epoch_begin()

    def on_epoch_end(self) -> None:
        # When an epoch begins, Keras's threads may have read the first batches of it already.
        if self.shuffles:
            self._order = self._random.permutation(len(self))
        self._whole.on_epoch_end()

    def _rows(self, x: Any) -> Any:
        n = len(x)
        if n < self._size:
            return x
        step = n // self._size
        return x[self._rank * step : (self._rank + 1) * step]


def _refuse_remainder(n_rows: int, batch_size: int, size: int) -> None:
    if min(batch_size, n_rows) % size:
        raise ValueError(
            "Invalid value for argument `batch_size`: expected a multiple of the number of "
            f"workers, {size}, as each gets an equal part; received batch_size={batch_size} for "
            f"{n_rows} rows."
        )


def _common_seed() -> int:
    return membership.exchange(random.randrange(1, 2**31))[0]


def are_arrays(dataset: Any) -> bool:
    """Whether it is arrays, which have no batches yet."""
    leaves = keras.tree.flatten(dataset)
    return bool(leaves) and all(isinstance(x, np.ndarray) or keras.ops.is_tensor(x) for x in leaves)
