"""Training that goes on where it was: a strategy's checkpoints, and a callback for `fit`."""

import os
import random
from typing import Any

import keras
import numpy as np

from revkeras.distribute import checkpoint
from revkeras.distribute.tensorflow.replay import iterator_at

_VERSION = random.getstate()[0]


def save(
    strategy: Any,
    directory: str | os.PathLike,
    step: int | None = None,
    keep: int = 3,
    position: dict | None = None,
    local: dict | None = None,
) -> str:
    """Writes a checkpoint of all that the strategy trains; see `ZeroStrategy.save_checkpoint`."""
    _check_keep(keep)
    if step is None:
        step = int(strategy.models[0].optimizer.iterations) if strategy.models else 0
    folder = checkpoint.write(
        directory,
        strategy.state_pieces(),
        step=step,
        rank=strategy.rank,
        size=strategy.size,
        keep=keep,
        position=position,
        local={**{name: v.numpy() for name, v in _seeds(strategy).items()}, **(local or {})},
    )
    return str(folder)


def restore(strategy: Any, directory: str | os.PathLike) -> checkpoint.Checkpoint | None:
    """Takes the last good checkpoint on; see `ZeroStrategy.restore_checkpoint`."""
    found = checkpoint.newest(directory, rank=strategy.rank, size=strategy.size)
    if found is None:
        return None
    strategy.restore_pieces(found.read_range)
    if found.size == strategy.size:  # with more or fewer workers, seeds stay as they started
        stored = found.local(strategy.rank)
        for name, v in _seeds(strategy).items():
            v.assign(stored[name])
    return found


class SaveAndResume(keras.callbacks.Callback):
    """Saves a checkpoint every `every` steps of `fit`, and resumes from the last one by itself.

    When `fit` starts and the folder has a checkpoint, weights and optimizer are restored
    and training goes on at that place of that epoch: the batches before it are read from
    the dataset and passed over. A run that was interrupted therefore ends with the same weights
    as one that was not, if the dataset gives the same batches again: set a seed for
    what is shuffled.

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
        self._passed_over = 0
        self._metrics: dict | None = None
        self._random: np.ndarray | None = None  # Keras shuffles by Python's generator

    def on_train_begin(self, logs: dict | None = None) -> None:
        if self._started:  # a later `fit` of the same program is not resumed
            return
        self._started = True
        found = restore(self._strategy, self._directory)
        if found is None or found.position is None:
            return
        self._step = self._saved = found.step
        self._epoch, self._passed_over = found.position["epoch"], found.position["batch"]
        if found.size == self._strategy.size:
            self._metrics = found.local(self._strategy.rank)
            self._random = self._metrics["random"]
        for dataset in self._strategy.datasets:
            for _ in range(self._epoch):
                dataset.on_epoch_begin()
                dataset.on_epoch_end()
        self.model._initial_epoch = self._epoch
        self._pass_over(self.model.train_function)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._epoch, self._batch = epoch, 0
        if self._random is not None:
            random.setstate((_VERSION, tuple(self._random.tolist()), None))
        self._random = None
        self._at_epoch = np.array(random.getstate()[1], "int64")

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if batch < self._passed_over:
            self._batch = batch + 1
            return
        self._step += batch + 1 - self._batch
        self._batch = batch + 1
        if self._step // self._every > self._saved // self._every:
            self._save()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._epoch, self._batch, self._passed_over = epoch + 1, 0, 0

    def on_train_end(self, logs: dict | None = None) -> None:
        self.model._initial_epoch = None
        if self._step > self._saved:
            self._save()

    def _save(self) -> None:
        position = {"epoch": self._epoch, "batch": self._batch}
        metrics = {name: v.numpy() for name, v in _metric_variables(self.model).items()}
        local = {**metrics, "random": self._at_epoch}
        save(self._strategy, self._directory, self._step, self._keep, position, local)
        self._saved = self._step

    def _pass_over(self, train: Any) -> None:
        """Has the resumed epoch's first steps read their batches, and do no more."""
        epoch, steps = self._epoch, self.params.get("steps")
        at = None

        def resumed(iterator: Any) -> dict:
            nonlocal at
            if self._epoch != epoch:
                self.model.train_function = train
                return train(iterator)
            at = at or iterator_at(iterator, epoch, steps)
            left = self._passed_over - self._batch
            if left <= 0:
                return train(at)
            for _ in range(min(self.model.steps_per_execution, left)):
                batch = next(at)
            self._restore_metrics(batch)
            return self.model.get_metrics_result()

        self.model.train_function = resumed

    def _restore_metrics(self, batch: Any) -> None:
        """Metrics are made at their first batch, and are then what they were."""
        if self._metrics is not None:
            self.model._symbolic_build(data_batch=batch)
            for name, v in _metric_variables(self.model).items():
                v.assign(self._metrics[name])
            self._metrics = None


def _check_keep(keep: Any) -> None:
    if not isinstance(keep, int) or keep < 1:
        raise ValueError(
            "Invalid value for argument `keep`: expected at least 1 checkpoint, received "
            f"keep={keep!r}."
        )


def _seeds(strategy: Any) -> dict[str, Any]:
    """The random generators' states, of which each rank has its own."""
    variables = [v for model in strategy.models for v in model.variables]
    seeds = [v for v in variables if v.name == "seed_generator_state"]
    return {f"seed/{place}": v for place, v in enumerate(seeds)}


def _metric_variables(model: keras.Model) -> dict[str, Any]:
    variables = [v for metric in model.metrics for v in metric.variables]
    return {f"metric/{place}": v for place, v in enumerate(variables)}
