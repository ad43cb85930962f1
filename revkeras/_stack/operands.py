"""The values that a stack's steps read."""

from collections.abc import Callable

import keras


class Operands:
    """The values that a stack's steps share, each once, however many steps read it."""

    def __init__(self) -> None:
        self.items: list = []  # Keras variables and tensors
        self._positions: dict[int, int] = {}

    def positions(self, items: list) -> tuple[int, ...]:
        """The places of `items` in the list; new ones go to its end."""
        for item in items:
            if id(item) not in self._positions:
                self._positions[id(item)] = len(self.items)
                self.items.append(item)
        return tuple(self._positions[id(item)] for item in items)

    def values(self, read: Callable[[list], list]) -> list:
        """The items as tensors; `read(variables)` gives those of variables."""
        variables = [v for v in self.items if isinstance(v, keras.Variable)]
        values = iter(read(variables))
        return [next(values) if isinstance(v, keras.Variable) else v for v in self.items]
