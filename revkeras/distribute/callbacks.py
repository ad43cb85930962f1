"""What `fit` does between steps when many workers train."""

from typing import Any

import keras

from revkeras.distribute.first_batches import FirstBatches

_WRITERS = (
    keras.callbacks.CSVLogger,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TensorBoard,
    keras.callbacks.ProgbarLogger,
)

_OF_ONE_PROCESS = (
    keras.callbacks.BackupAndRestore,
    *([keras.callbacks.OrbaxCheckpoint] if hasattr(keras.callbacks, "OrbaxCheckpoint") else []),
)


class Exact(keras.callbacks.Callback):
    """Gives all workers the parameters in all their bits, where they read them in 16."""

    def __init__(self, strategy: Any):
        super().__init__()
        self._strategy = strategy

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._strategy.publish_exactly(self.model)

    def on_train_end(self, logs: dict | None = None) -> None:
        self._strategy.publish_exactly(self.model)


class SameData(keras.callbacks.Callback):
    """Raises on all workers if they read different batches, when the first few are read."""

    def __init__(self, first: FirstBatches):
        super().__init__()
        self._first = first

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._first.watch()

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        self._first.compare()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._first.compare(ends=True)


def refuse_unfit(callbacks: list, stage: int) -> None:
    """Raises for callbacks of Keras that act on one worker as if it were alone."""
    for callback in callbacks:
        objection = _objection(callback, stage)
        if objection:
            raise ValueError(
                "Invalid value for argument `callbacks`: expected those that many workers can "
                f"call together, received a {type(callback).__name__}, {objection}"
            )


def _objection(callback: keras.callbacks.Callback, stage: int) -> str | None:
    """Why not, and what to use in its place."""
    if isinstance(callback, _OF_ONE_PROCESS):
        return (
            "whose files all workers would write at once. Use "
            "revkeras.distribute.SaveAndResume(strategy, directory)."
        )
    if isinstance(callback, keras.callbacks.SwapEMAWeights):
        return (
            "whose averages are spread over the workers. Leave it out: with an optimizer that has "
            "use_ema=True, `fit` ends with the averages as weights, and "
            "ema_overwrite_frequency=n takes them on every n steps."
        )
    if isinstance(callback, keras.callbacks.TensorBoard):
        if callback.embeddings_freq:
            return (
                "which writes on rank 0 alone and would save the weights there, where all have "
                "to. Set embeddings_freq=0, and use keras.callbacks.ModelCheckpoint."
            )
        if callback.histogram_freq and stage == 3:
            return (
                "which writes on rank 0 alone and would read all weights there, where at stage 3 "
                "all have to gather them. Set histogram_freq=0, or use stage 2."
            )
    return None


def only_from_rank_0(callbacks: list, rank: int) -> list:
    """The callbacks without those that write files of their own, on other ranks than 0."""
    return [c for c in callbacks if rank == 0 or not isinstance(c, _WRITERS)]
