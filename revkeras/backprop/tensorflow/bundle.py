"""Many tensors as a few, for what takes longer with each of them."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record


def bundle(structure: Any) -> Callable[[], Any]:
    """Stacks those tensors of a structure that have the same dtype and shape.

    Where nothing reads the stacks, TensorFlow does not compute them.

    Returns:
        `unbundle()`, which takes the structure out of the stacks again. In a gradient, it reads
        one tensor for each dtype and shape, and one for each tensor of unknown shape.
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

    def unbundle() -> Any:
        found = {i: tensors[i] for i in single}
        for places, stack in zip(groups, stacks, strict=True):
            found.update(zip(places, tf.unstack(stack), strict=True))
        return tf.nest.pack_sequence_as(structure, [found[i] for i in range(len(tensors))])

    return unbundle
