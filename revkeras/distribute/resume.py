"""Training that goes on where it was: a strategy's checkpoints, and a callback for `fit`."""

import os
import random
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from revkeras._keras import build_metrics, set_initial_epoch
from revkeras.distribute import sharded_checkpoint
from revkeras.distribute.building import has_call
from revkeras.distribute.model_optimizers import optimizers
from revkeras.distribute.tensorflow.replay import iterator_at
from revkeras.distribute.training_state import held_by, seeds, trained

# The place in `fit`, `None` where it is not known, and this rank's small arrays that belong to it.
Place = Callable[[], tuple[dict | None, dict]]

_VERSION = random.getstate()[0]


def save(strategy: Any, directory: str | os.PathLike, keep: int = 3) -> str:
    """Writes a checkpoint of all that the strategy trains; see `ZeroStrategy.save_checkpoint`."""
    _check_keep(keep)
    for model in trained(strategy):
        strategy.publish_exactly(model)  # masters and shards, of which either is written, agree
    position, local = strategy.place()
    folder = sharded_checkpoint.write(
        directory,
        strategy.state_pieces(),
        step=_step(strategy),
        rank=strategy.rank,
        size=strategy.size,
        keep=keep,
        position=position,
        local={**local, **{name: v.numpy() for name, v in seeds(strategy).items()}},
    )
    return str(folder)


def restore(
    strategy: Any, directory: str | os.PathLike
) -> sharded_checkpoint.ShardedCheckpoint | None:
    """Takes the last good checkpoint on; see `ZeroStrategy.restore_checkpoint`."""
    trained(strategy)
    found = sharded_checkpoint.newest(directory, rank=strategy.rank, size=strategy.size)
    if found is None:
        return None
    shapes = {held.name: held.shape for held in held_by(strategy, written=False)}
    own_seeds = seeds(strategy)
    found.check(shapes, own_seeds)
    strategy.restore_pieces(found.read_range)
    local = {}
    if found.size == strategy.size:  # with more or fewer workers, seeds stay as they started
        local = found.local(strategy.rank)
        for name, v in own_seeds.items():
            v.assign(local[name])
    strategy.place = lambda: (found.position, local)
    return found


class SaveAndResume(keras.callbacks.Callback):
    """Saves a checkpoint every `every` steps of `fit`, and resumes from the last one by itself.

    When `fit` starts and the folder has a checkpoint, weights and optimizer are restored
    and training goes on at that place of that epoch: the batches before it are read from
    the dataset and passed over. A run that was interrupted therefore ends with the same weights
    as one that was not, if the dataset gives the same batches again: set a seed for
    what is shuffled. `strategy.save_checkpoint` writes the place in `fit` too from then on.

    Args:
        strategy: The `ZeroStrategy` that the model was built under.
        directory: String or path, the folder of the checkpoints, on a file system that
            all workers share.
        every: Integer, how many steps lie between checkpoints. Defaults to `1000`.
        keep: Integer, how many checkpoints stay. Defaults to `3`.

    Example:

    ```python
    resume = revkeras.distribute.SaveAndResume(strategy, "checkpoints", every=100)
    model.fit(strategy.shard(dataset), epochs=10, callbacks=[resume])
    ```
    """

    def __init__(
        self, strategy: Any, directory: str | os.PathLike, every: int = 1000, keep: int = 3
    ) -> None:
        super().__init__()
        if not isinstance(every, int) or every < 1:
            raise ValueError(
                "Invalid value for argument `every`: expected at least 1 step, received "
                f"every={every!r}."
            )
        _check_keep(keep)
        self._strategy, self._directory = strategy, directory
        self._every, self._keep = every, keep
        self._started = False
        self._step = self._saved = 0
        self._epoch = self._batch = 0
        self._end_resuming()
        self._random: np.ndarray | None = None  # Keras shuffles by Python's generator
        self._at_epoch = _random_state()
        self._train: Any = None

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._end_resuming()
        if not self._started:  # a later `fit` of the same program is not resumed
            self._started = True
            found = restore(self._strategy, self._directory)
            self._step = self._saved = _step(self._strategy)
            if found is not None and found.position is not None:
                self._resume(found)
        # Counts each batch before any callback can save what it led to.
        if self.model.train_function != self._run:
            self._train, self.model.train_function = self.model.train_function, self._run
        self._strategy.place = self._place

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._epoch, self._batch = epoch, 0
        if self._random is not None:
            random.setstate((_VERSION, tuple(self._random.tolist()), None))
        self._random = None
        self._at_epoch = _random_state()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if self._step // self._every > self._saved // self._every:
            self._save()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._epoch, self._batch = epoch + 1, 0
        self._at_epoch = _random_state()
        self._end_resuming()

    def on_train_end(self, logs: dict | None = None) -> None:
        set_initial_epoch(self.model, None)
        self.model.train_function = self._train
        if self._step > self._saved:
            self._save()

    def _save(self) -> None:
        save(self._strategy, self._directory, self._keep)
        self._saved = self._step

    def _place(self) -> tuple[dict | None, dict]:
        position = {"epoch": self._epoch, "batch": max(self._batch, self._passed_over)}
        if self._metric_values is not None:  # not restored yet
            return position, self._metric_values
        metrics = {name: v.numpy() for name, v in _metric_variables(self.model).items()}
        return position, {**metrics, "random": self._at_epoch}

    def _resume(self, found: sharded_checkpoint.ShardedCheckpoint) -> None:
        self._epoch, self._passed_over = found.position["epoch"], found.position["batch"]
        if found.size == self._strategy.size:
            self._metric_values = found.local(self._strategy.rank)
            self._random = self._metric_values.get("random")
        for dataset in self._strategy.datasets:
            for _ in range(self._epoch):
                dataset.on_epoch_begin()
                dataset.on_epoch_end()
        set_initial_epoch(self.model, self._epoch)
        self._resumes = True

    def _end_resuming(self) -> None:
        self._resumes, self._passed_over = False, 0
        self._iterator: Any = None
        self._metric_values: dict | None = None

    def _run(self, iterator: Any) -> dict:
        """Trains on the next batches; the resumed epoch's first are read, and no more."""
        steps = self.model.steps_per_execution
        if self._resumes:
            self._iterator = self._iterator or iterator_at(
                iterator, self._epoch, self.params.get("steps")
            )
            iterator = self._iterator
            left = self._passed_over - self._batch
            if left > 0:
                for _ in range(min(steps, left)):
                    batch = next(iterator)
                self._batch += steps
                self._restore_metrics(batch)
                return self.model.get_metrics_result()
        logs = self._train(iterator)
        self._metric_values = None
        self._step += steps
        self._batch += steps
        return logs

    def _restore_metrics(self, batch: Any) -> None:
        """Metrics are made at their first batch, and are then what they were."""
        if self._metric_values is not None:
            if has_call(self.model):
                build_metrics(self.model, batch)
            for name, v in _metric_variables(self.model).items():
                if name in self._metric_values:
                    v.assign(self._metric_values[name])
            self._metric_values = None


def _check_keep(keep: Any) -> None:
    if not isinstance(keep, int) or keep < 1:
        raise ValueError(
            "Invalid value for argument `keep`: expected at least 1 checkpoint, received "
            f"keep={keep!r}."
        )


def _step(strategy: Any) -> int:
    """How many batches the strategy's optimizers have taken, which numbers checkpoints."""
    return sum(
        max((x.batches for x in optimizers(strategy, model).values()), default=0)
        for model in trained(strategy)
    )


def _random_state() -> np.ndarray:
    return np.array(random.getstate()[1], "int64")


def _metric_variables(model: keras.Model) -> dict[str, Any]:
    variables = [v for metric in model.metrics for v in metric.variables]
    return {f"metric/{place}": v for place, v in enumerate(variables)}
