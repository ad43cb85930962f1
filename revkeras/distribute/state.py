"""All that training keeps, as pieces for checkpoints."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

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
        offset: What is added on this rank to what rank 0 holds.
    """

    name: str
    shape: tuple[int, ...]
    variable: Any
    start: int | None
    stop: int | None
    offset: Any = 0

    def piece(self, rank: int) -> StatePiece:
        """What this rank writes."""
        size = math.prod(self.shape)
        start, stop = (0, size * (rank == 0)) if self.start is None else (self.start, self.stop)

        def read() -> np.ndarray:
            values = np.reshape(keras.ops.convert_to_numpy(self.variable.value), (-1,))
            return values[: stop - start]

        return StatePiece(self.name, self.shape, self.variable._dtype, start, stop, read)

    def restore(self, read_range: ReadRange) -> None:
        """Takes this rank's part from a checkpoint."""
        size = math.prod(self.shape)
        start, stop = (0, size) if self.start is None else (self.start, self.stop)
        values = read_range(self.name, start, stop)
        put(self.variable, values + self.offset)


def put(variable: keras.Variable, values: np.ndarray) -> None:
    """Assigns 1-D values to a variable of any shape; padding behind them stays zero."""
    size = math.prod(variable._shape)
    variable.assign(np.reshape(np.pad(values, (0, size - len(values))), tuple(variable._shape)))


def unique(paths: list[str]) -> list[str]:
    """The paths, with a number behind those that came before."""
    seen: dict[str, int] = {}
    names = []
    for path in paths:
        seen[path] = seen.get(path, 0) + 1
        names.append(path if seen[path] == 1 else f"{path}#{seen[path]}")
    return names
