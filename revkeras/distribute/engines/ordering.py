"""Collectives run in the order in which they are called, on TensorFlow's executors too."""

from collections.abc import Callable

import tensorflow as tf


class Order:
    """Chains collectives, and counts the bytes that they sent, by one variable.

    An executor starts an operation as soon as its inputs are there, which on two
    workers may be in two orders. Each collective therefore waits for a read of this
    variable, and adds to it when it is through: `tf.function` keeps the
    order of reads and writes of a variable, in conditionals, loops and called functions too.
    """

    def __init__(self) -> None:
        with tf.init_scope(), tf.device("CPU:0"):
            self._bytes_sent = tf.Variable(0, dtype=tf.int64, trainable=False, name="bytes_sent")

    def run(self, collective: Callable[[], tf.Tensor], sent: tf.Tensor | int) -> tf.Tensor:
        """Calls `collective` after those before it; `sent` is how many bytes it sends."""
        with tf.control_dependencies([self._bytes_sent.read_value()]):
            result = collective()
        with tf.control_dependencies([result]):
            self._bytes_sent.assign_add(tf.cast(sent, tf.int64), read_value=False)
        return result

    def bytes_sent(self) -> int:
        return int(self._bytes_sent.numpy())


def size_in_bytes(x: tf.Tensor) -> tf.Tensor | int:
    """The bytes of a tensor; an integer where its shape is known."""
    if x.shape.is_fully_defined():
        return x.shape.num_elements() * x.dtype.size
    return tf.size(x, tf.int64) * x.dtype.size
