"""Training that goes on where it was: a strategy's checkpoints, and a callback for `fit`."""

import os
from typing import Any

import keras

from revkeras.distribute import checkpoint
from revkeras.distribute.tensorflow.replay import iterator_at


def save(
    strategy: Any,
    directory: str | os.PathLike,
    step: int | None = None,
    keep: int = 3,
    position: dict | None = None,
) -> str:
    """Writes a checkpoint of all that the strategy trains; see `ZeroStrategy.save_checkpoint`."""
    if not isinstance(keep, int) or keep < 1:
        raise ValueError(
            f"Invalid value for argument `keep`: expected at least 1 checkpoint, received {keep!r}."
        )
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
        local={name: v.numpy() for name, v in _own_state(strategy).items()},
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
        for name, v in _own_state(strategy).items():
            if name in stored and stored[name].shape == tuple(v.shape):
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
                f"Invalid value for argument `every`: expected at least 1 step, received {every!r}."
            )
        self._strategy, self._directory = strategy, directory
        self._every, self._keep = every, keep
        self._started = False
        self._step = self._saved = 0
        self._epoch = self._batch = 0
        self._passed_over = 0
        self._metrics: dict | None = None

    def on_train_begin(self, logs: dict | None = None) -> None:
        if self._started:  # a later `fit` of the same program is not resumed
            return
        self._started = True
        found = restore(self._strategy, self._directory)
        if found is None or found.position is None:
            return
        self._step = self._saved = found.step
        self._epoch, self._passed_over = found.position["epoch"], found.position["batch"]
        self._metrics = {id(v): v.numpy() for v in _metric_variables(self.model)}
        self.model._initial_epoch = self._epoch
        self._pass_over(self.model.train_function)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._epoch, self._batch = epoch, 0
        if self._metrics is not None:  # `fit` has reset them
            for v in _metric_variables(self.model):
                v.assign(self._metrics[id(v)])
            self._metrics = None

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
        save(self._strategy, self._directory, self._step, self._keep, position)
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
            if at is None:
                at = iterator_at(iterator, epoch, steps)
            if self._batch < self._passed_over:
                batches = min(self.model.steps_per_execution, self._passed_over - self._batch)
                for _ in range(batches):
                    next(at)
                last = self._batch + batches >= self._passed_over
                return self.model.get_metrics_result() if last else {}
            return train(at)

        self.model.train_function = resumed


def _own_state(strategy: Any) -> dict[str, Any]:
    """What each rank has of its own: seeds, and the metrics of its batches, by unique names."""
    found = {}
    for number, model in enumerate(strategy.models):
        seeds = [v for v in model.variables if v.name == "seed_generator_state"]
        for kind, variables in ("seed", seeds), ("metric", _metric_variables(model)):
            for place, v in enumerate(variables):
                found[f"{number}/{kind}/{place}"] = v
    return found


def _metric_variables(model: keras.Model) -> list:
    return [v for metric in model.metrics for v in metric.variables]
