"""A sharded optimizer's state, as checkpoints and ordinary files know it: by whole tensors."""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from revkeras._keras import SavedOptimizer, stored_dtype
from revkeras.distribute import slots
from revkeras.distribute.state import Held, put
from revkeras.distribute.variable_names import numbered


@dataclasses.dataclass(frozen=True)
class Owned:
    """What this rank has of one of the model's variables.

    Attributes:
        variable: The variable.
        piece: What the optimizer updates.
        start: Where the piece's range of the flattened variable begins. In elements.
        stop: Where it ends; the piece may go on with padding.
    """

    variable: keras.Variable
    piece: keras.Variable
    start: int
    stop: int


class OptimizerState:
    """What an optimizer keeps for pieces.

    Args:
        optimizer: The Keras optimizer that was built on pieces.
        found: Its slots, whose owners are positions in the model's list of variables.
        variables: The model's variables.
        owned: What this rank has of them, by position.
        engine: The engine that the ranks communicate by.
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        found: list[slots.Slot],
        variables: list,
        owned: dict[int, Owned],
        engine: Any,
    ):
        mine = {id(slot.variable) for slot in found}
        self._optimizer = optimizer
        self._variables = variables
        self._slots = {(s.name, s.owner): s for s in found if s.owner in owned}
        self._others = tuple(v for v in optimizer.variables if id(v) not in mine)
        self.owned = owned
        self._engine = engine

    def held(self, prefix: str, names: dict[int, str]) -> Iterator[Held]:
        """What this rank holds of it; `names` are those of the model's variables, by `id`."""
        prefix += type(self._optimizer).__name__.lower()
        for name, v in zip(numbered([v.name for v in self._others]), self._others, strict=True):
            yield Held(f"{prefix}/{name}", tuple(v.shape), v, None, None)
        for (name, i), slot in self._slots.items():
            shape, start, stop = self._place(slot)
            name = f"{prefix}/{name}/{names[id(self._variables[i])]}"
            yield Held(name, shape, slot.variable, start, stop)

    def whole(self) -> Iterator[np.ndarray]:
        """What the optimizer would have kept for whole variables, one at a time, in its order."""
        for slot, other in self._as_whole():
            yield self._gather(slot) if slot else np.asarray(other)

    def load(self, keys: list[str], store: Any) -> None:
        """Takes this rank's part of what an optimizer kept for whole variables."""
        whole = self._as_whole()
        if len(keys) != len(whole):
            raise ValueError(
                f"The file holds {len(keys)} variables of an optimizer, and this one, with "
                f"{len(whole)}, is another. Compile the model with the optimizer that was saved."
            )
        for key, (slot, other) in zip(keys, whole, strict=True):
            mine = self._slots.get((slot.name, slot.owner)) if slot else None
            if mine is not None:
                _, start, stop = self._place(mine)
                put(mine.variable, np.reshape(store[key], (-1,))[start:stop])
            elif slot is None:
                other.assign(store[key])

    def _as_whole(self) -> list[tuple[slots.Slot | None, Any]]:
        """The unsharded optimizer's variables in order: each a slot, or one of the others."""
        everything, found = slots.described(
            self._optimizer,
            [v.path for v in self._variables],
            [tuple(v.shape) for v in self._variables],
            [stored_dtype(v) for v in self._variables],
        )
        by_variable = {id(slot.variable): slot for slot in found}
        others = list(self._others)
        whole = []
        for v in everything:
            if id(v) in by_variable:
                whole.append((by_variable[id(v)], None))
            else:
                same = [i for i, other in enumerate(others) if other.name == v.name]
                whole.append((None, others.pop(same[0]) if same else v))
        return whole

    def _gather(self, slot: slots.Slot) -> np.ndarray:
        size = math.prod(slot.shape)
        mine = self._slots.get((slot.name, slot.owner))
        if mine is None:
            flat = ops.zeros((size,), slot.variable.dtype)
        else:
            _, start, stop = self._place(mine)
            part = ops.reshape(mine.variable.value, (-1,))[: stop - start]
            flat = ops.pad(part, [[start, size - stop]])
        return np.reshape(ops.convert_to_numpy(self._engine.all_reduce(flat)), slot.shape)

    def _place(self, slot: slots.Slot) -> tuple[tuple[int, ...], int, int]:
        """The shape of the whole slot, and the range of it that this rank has."""
        own = self.owned[slot.owner]
        if tuple(slot.shape) == tuple(own.piece.shape):
            return tuple(own.variable.shape), own.start, own.stop
        return tuple(slot.shape), 0, math.prod(slot.shape)


class File(SavedOptimizer):
    """The part of an ordinary file that holds an optimizer's state.

    Args:
        state: An `OptimizerState`.
        before: Variables that stand before it, which all ranks hold.
    """

    def __init__(self, state: OptimizerState, before: list[keras.Variable]):
        self._get = lambda: (state, before)  # which Keras would save beside it

    def save_own_variables(self, store: Any) -> None:
        state, before = self._get()
        values = [*(np.asarray(v) for v in before)]
        for key, value in enumerate(itertools.chain(values, state.whole())):
            store[str(key)] = value

    def load_own_variables(self, store: Any) -> None:
        state, before = self._get()
        for key, v in enumerate(before):
            v.assign(store[str(key)])
        state.load([str(n) for n in range(len(before), len(store.keys()))], store)
