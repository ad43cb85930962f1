"""Collectives run in the order in which they are called, on TensorFlow's executors too."""

from collections.abc import Callable

import tensorflow as tf

from revkeras.distribute.stalls import Progress


class Order:
    """Chains collectives, and counts them and the bytes that they sent, by one variable.

    An executor starts an operation as soon as its inputs are there, which on two
    workers may be in two orders. Each collective therefore adds to this variable before it
    begins, and when it is through: `tf.function` keeps the order of a variable's
    writes, in conditionals, loops and called functions too.
    """

    def __init__(self) -> None:
        with tf.init_scope(), tf.device("CPU:0"):
            # Collectives begun, the sum of their keys, collectives ended, bytes sent.
            self._counts = tf.Variable([0] * 4, dtype=tf.int64, trainable=False, name="counts")

    def run(
        self,
        collective: Callable[[], tf.Tensor],
        wire: tf.Tensor,
        key: tf.Tensor | int,
        sent: tf.Tensor | int,
    ) -> tf.Tensor:
        """Calls `collective` after those before it, and when what it sends is there.

        Args:
            collective: Returns its result.
            wire: What it sends.
            key: The number that it has on all workers.
            sent: How many bytes this worker sends for it.
        """
        with tf.control_dependencies([wire]):
            begun = self._add(1, key, 0, 0)
        with tf.control_dependencies([begun]):
            result = collective()
        with tf.control_dependencies([result]):
            self._add(0, 0, 1, sent)
        return result

    def bytes_sent(self) -> int:
        return int(self._counts.numpy()[3])

    def progress(self) -> Progress:
        """How far this worker is; any thread may ask."""
        return Progress(*self._counts.numpy()[:3].tolist())

    def _add(self, *counts: tf.Tensor | int) -> tf.Operation | None:
        with tf.device("CPU:0"):
            row = [n if isinstance(n, int) else tf.cast(n, tf.int64) for n in counts]
            return self._counts.assign_add(row, read_value=False)


def size_in_bytes(x: tf.Tensor) -> tf.Tensor | int:
    """The bytes of a tensor; an integer where its shape is known."""
    if x.shape.is_fully_defined():
        return x.shape.num_elements() * x.dtype.size
    return tf.size(x, tf.int64) * x.dtype.size
