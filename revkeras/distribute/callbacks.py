"""What `fit` does between steps when many workers train."""

from typing import Any

import keras

_WRITERS = (
    keras.callbacks.CSVLogger,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TensorBoard,
    keras.callbacks.ProgbarLogger,
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


def only_from_rank_0(callbacks: list, rank: int) -> list:
    """The callbacks without those that write files of their own, on other ranks than 0."""
    return [c for c in callbacks if rank == 0 or not isinstance(c, _WRITERS)]
