"""The tensors that a gradient reads, when it is saved too."""

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from revkeras._engine.tensorflow._private import record


@dataclasses.dataclass(frozen=True)
class Keeping:
    """A gradient that reads tensors of every block.

    An export traces it by itself, and TensorFlow takes the square of the number of tensors that
    it reads there to save it. So that trace reads them from stacks.

    Attributes:
        gradient: `gradient(kept, *dresults)`.
        kept: The tensors that it reads, in a structure.
        kept_in_stacks: Returns the same, taken out of stacks.
    """

    gradient: Callable
    kept: Any
    kept_in_stacks: Callable[[], Any]

    @classmethod
    def of(cls, gradient: Callable, kept: Any) -> "Keeping":
        in_graph = not tf.executing_eagerly()
        return cls(gradient, kept, stacked(kept) if in_graph else lambda: kept)

    def __call__(self, *dresults: Any) -> list:
        return self.gradient(self.kept, *dresults)

    def saved(self, *dresults: Any) -> list:
        return self.gradient(self.kept_in_stacks(), *dresults)


def stacked(structure: Any) -> Callable[[], Any]:
    """Stacks those tensors of a structure that have the same dtype and shape.

    Where nothing reads the stacks, TensorFlow does not compute them.

    Returns:
        A function that takes the structure out of the stacks again.
    """
    tensors = tf.nest.flatten(structure)
    alike: dict[Any, list[int]] = {}
    for i, x in enumerate(tensors):
        key = (x.dtype, tuple(x.shape)) if x.shape.is_fully_defined() else i
        alike.setdefault(key, []).append(i)
    single = [places[0] for places in alike.values() if len(places) == 1]
    groups = [places for places in alike.values() if len(places) > 1]
    with record.stop_recording():
        stacks = [tf.stack([tensors[i] for i in places]) for places in groups]

    def taken_out() -> Any:
        found = {i: tensors[i] for i in single}
        for places, stack in zip(groups, stacks, strict=True):
            found.update(zip(places, tf.unstack(stack), strict=True))
        return tf.nest.pack_sequence_as(structure, [found[i] for i in range(len(tensors))])

    return taken_out
