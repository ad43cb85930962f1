"""The verbs of engines that communicate, on the few kernels that each of them has."""

import abc
import zlib
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from revkeras.distribute.engines.ordering import Order, size_in_bytes
from revkeras.distribute.engines.wire import copyable, from_copy, is_16_bit, mean_of, to_wire

OPERATIONS = ("sum", "mean", "max", "min")


class Collectives(abc.ABC):
    """Verbs on tensors of any dtype, in the order in which they are called.

    A subclass gives the kernels, which take a tensor in a dtype that can be sent and the key
    by which workers know a collective, and sets `device`, where they run.

    Args:
        rank: Integer, this worker's.
        size: Integer, how many workers there are.
    """

    device = "CPU:0"
    runtime = f"TensorFlow {tf.__version__}"

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._order = Order()

    @abc.abstractmethod
    def _key(self, verb: str, wire: tf.Tensor) -> Any:
        """What names a collective alike on all workers."""

    @abc.abstractmethod
    def _reduce(self, wire: tf.Tensor, op: str, key: Any) -> tf.Tensor:
        """All ranks' sum, or the largest or smallest, element by element."""

    @abc.abstractmethod
    def _gather(self, wire: tf.Tensor, key: Any) -> tf.Tensor:
        """All ranks' tensors, one behind the other."""

    @abc.abstractmethod
    def _send(self, wire: tf.Tensor, root: int, key: Any) -> tf.Tensor:
        """The root's tensor."""

    @abc.abstractmethod
    def _exchange(self, wire: tf.Tensor, key: Any) -> tf.Tensor:
        """From each rank, that of its N slices which is this rank's."""

    def _summable(self, wire: tf.Tensor) -> tf.Tensor:
        """The tensor in a dtype that `_reduce` takes."""
        return wire

    def _scatter_kernel(self, wire: tf.Tensor) -> Callable | None:
        """`kernel(wire, key)`, this rank's slice of the sum, or `None` where none is fit."""
        return None

    def all_reduce(self, x: tf.Tensor, op: str = "sum") -> tf.Tensor:
        """The ranks' sum, mean, largest or smallest, on all of them."""
        if op not in OPERATIONS:
            raise ValueError(
                f"Invalid value for argument `op`: expected one of {OPERATIONS}, received "
                f"op={op!r}."
            )
        x = tf.convert_to_tensor(x)
        wire = self._summable(to_wire(x))
        sent = 2 * self._others_share(wire)
        kernel = {"mean": "sum"}.get(op, op)
        reduced = self._run(f"reduce_{op}", wire, sent, lambda key: self._reduce(wire, kernel, key))
        if op == "mean":
            reduced = mean_of(reduced, self.size)
        return tf.ensure_shape(tf.cast(reduced, x.dtype), x.shape)

    def reduce_scatter(self, x: tf.Tensor) -> tf.Tensor:
        """This rank's one of N equal slices of the sum of the ranks' flat tensors."""
        x = tf.convert_to_tensor(x)
        if x.shape.num_elements() == 0:
            return x
        wire = to_wire(x)
        sent = self._others_share(wire)
        if kernel := self._scatter_kernel(wire):
            scattered = self._run("reduce_scatter", wire, sent, lambda key: kernel(wire, key))
            return _of_length(tf.cast(scattered, x.dtype), x, 1 / self.size)
        # An all-to-all moves as many bytes as a reduce-scatter, where an all-reduce moves twice.
        wire = copyable(wire)
        received = self._run("all_to_all", wire, sent, lambda key: self._exchange(wire, key))
        slices = tf.reshape(from_copy(received, x.dtype), [self.size, -1])
        if is_16_bit(x.dtype):
            slices = tf.cast(slices, tf.float32)
        return _of_length(tf.cast(tf.reduce_sum(slices, axis=0), x.dtype), x, 1 / self.size)

    def all_gather(self, x: tf.Tensor) -> tf.Tensor:
        """The ranks' tensors, one behind the other."""
        x = tf.convert_to_tensor(x)
        wire = copyable(to_wire(x))
        sent = (self.size - 1) * size_in_bytes(wire)
        gathered = self._run("all_gather", wire, sent, lambda key: self._gather(wire, key))
        return _of_length(from_copy(gathered, x.dtype), x, self.size)

    def broadcast(self, x: tf.Tensor, root: int = 0) -> tf.Tensor:
        """The tensor of rank `root`."""
        x = tf.convert_to_tensor(x)
        wire = copyable(to_wire(x))
        # The root's bytes reach all others along a tree: this is the mean over the ranks.
        sent = self._others_share(wire)
        received = self._run(
            f"broadcast_{root}", wire, sent, lambda key: self._send(wire, root, key)
        )
        return tf.ensure_shape(from_copy(received, x.dtype), x.shape)

    def barrier(self) -> None:
        """Waits for all workers."""
        self.all_reduce(tf.zeros([self.size], tf.int32))

    def bytes_sent(self) -> int:
        """How many bytes this worker has sent."""
        return self._order.bytes_sent()

    def _run(
        self, verb: str, wire: tf.Tensor, sent: tf.Tensor | int, kernel: Callable
    ) -> tf.Tensor:
        if wire.shape.num_elements() == 0:  # some of the kernels end the process
            return wire
        key = self._key(verb, wire)
        with tf.device(self.device):
            number = zlib.crc32(key.encode()) if isinstance(key, str) else key
            return self._order.run(lambda: kernel(key), wire, number, sent)

    def _others_share(self, x: tf.Tensor) -> tf.Tensor | int:
        return size_in_bytes(x) * (self.size - 1) // self.size


def _of_length(result: tf.Tensor, x: tf.Tensor, times: float) -> tf.Tensor:
    """`result`, known to be `times` as long as `x`.

    Keys of collectives have shapes in them. Kernels do not tell those of their results, and a
    worker that knew them from elsewhere waited for the others under another key.
    """
    length = x.shape[0]
    return tf.ensure_shape(
        result, [None if length is None else round(length * times), *x.shape[1:]]
    )
