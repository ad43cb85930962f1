"""What a rank holds of a tensor, as a piece for checkpoints."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from revkeras._keras import stored_dtype
from revkeras.distribute.partition import StatePiece

ReadRange = Callable[[str, int, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Held:
    """What this rank holds of a tensor.

    Attributes:
        name: The tensor's name in checkpoints.
        shape: The shape of the whole.
        variable: What holds it.
        start: Where the range that it holds begins; `None` where all ranks hold the whole.
        stop: Where it ends.
    """

    name: str
    shape: tuple[int, ...]
    variable: Any
    start: int | None
    stop: int | None

    def piece(self, rank: int) -> StatePiece:
        """What this rank writes."""
        size = math.prod(self.shape)
        start, stop = (0, size * (rank == 0)) if self.start is None else (self.start, self.stop)

        def read() -> np.ndarray:
            values = np.reshape(keras.ops.convert_to_numpy(self.variable.value), (-1,))
            return values[: stop - start]

        return StatePiece(self.name, self.shape, stored_dtype(self.variable), start, stop, read)

    def restore(self, read_range: ReadRange) -> None:
        """Takes this rank's part from a checkpoint."""
        size = math.prod(self.shape)
        start, stop = (0, size) if self.start is None else (self.start, self.stop)
        values = read_range(self.name, start, stop)
        put(self.variable, values)


def put(variable: keras.Variable, values: np.ndarray) -> None:
    """Assigns 1-D values to a variable of any shape; padding behind them stays zero."""
    size = math.prod(variable.shape)
    variable.assign(np.reshape(np.pad(values, (0, size - len(values))), tuple(variable.shape)))
