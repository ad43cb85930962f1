"""Horovod's collective operations, where `horovodrun` started the process."""

import dataclasses
import os
import re
import socket
from collections.abc import Callable

import tensorflow as tf

from revkeras.distribute import meeting, membership
from revkeras.distribute.cluster import Cluster
from revkeras.distribute.engines.ordering import Order, size_in_bytes
from revkeras.distribute.engines.wire import copyable, from_copy, is_16_bit, mean_of, to_wire

try:
    import horovod.tensorflow as hvd
    from horovod.tensorflow import mpi_ops
except ImportError as error:  # said when the engine is asked for
    hvd, _missing = None, error

_OPERATIONS = {"sum": "Sum", "mean": "Sum", "max": "Max", "min": "Min"}
_ADDRESS_BYTES = 256


class HorovodEngine:
    """The verbs of an engine on Horovod.

    Args:
        cluster: What Horovod's launcher left in the environment, as a `Cluster`.

    Raises:
        ImportError: if Horovod cannot be imported.
        RuntimeError: if a worker cannot be reached.
    """

    name = "horovod"

    def __init__(self, cluster: Cluster) -> None:
        if hvd is None:
            raise ImportError(
                "Invalid value for argument `engine`: 'horovod' needs Horovod, which cannot be "
                f"imported: {_missing}. `scripts/build_horovod.sh PYTHON` builds and installs it."
            )
        hvd.init()
        self.rank, self.size = hvd.rank(), hvd.size()
        self._order = Order()
        self._membership = None
        if self.size > 1:
            self._membership = self._join(
                dataclasses.replace(
                    cluster, source="Horovod", rank=self.rank, size=self.size, tasks=()
                )
            )

    def all_reduce(self, x: tf.Tensor, op: str = "sum") -> tf.Tensor:
        if op not in _OPERATIONS:
            raise ValueError(
                f"Invalid value for argument `op`: expected one of {tuple(_OPERATIONS)}, received "
                f"op={op!r}."
            )
        x = tf.convert_to_tensor(x)
        wire = _computable(to_wire(x))

        def collective(name):
            return mpi_ops._allreduce(
                wire, name, getattr(hvd, _OPERATIONS[op]), ignore_name_scope=True
            )

        reduced = self._run(f"reduce_{op}", collective, wire, 2 * self._others_share(wire))
        return tf.cast(mean_of(reduced, self.size) if op == "mean" else reduced, x.dtype)

    def reduce_scatter(self, x: tf.Tensor) -> tf.Tensor:
        x = tf.convert_to_tensor(x)
        # Gloo has no bfloat16, adds 16 bits in 16 bits, and sends more than it has to
        # where the number of workers is not a power of two. An all-to-all does not.
        if is_16_bit(x.dtype) or self.size & (self.size - 1):
            return self._exchange_and_add(x)
        wire = to_wire(x)

        def collective(name):
            return mpi_ops._reducescatter(wire, name, hvd.Sum, ignore_name_scope=True)

        scattered = self._run("reduce_scatter", collective, wire, self._others_share(wire))
        return tf.cast(scattered, x.dtype)

    def all_gather(self, x: tf.Tensor) -> tf.Tensor:
        x = tf.convert_to_tensor(x)
        wire = copyable(to_wire(x))

        def collective(name):
            return mpi_ops.allgather(wire, name, ignore_name_scope=True)

        sent = (self.size - 1) * size_in_bytes(wire)
        return from_copy(self._run("all_gather", collective, wire, sent), x.dtype)

    def broadcast(self, x: tf.Tensor, root: int = 0) -> tf.Tensor:
        x = tf.convert_to_tensor(x)
        wire = copyable(to_wire(x))

        def collective(name):
            return mpi_ops.broadcast(wire, root, name, ignore_name_scope=True)

        # The root's bytes reach all others along a tree: this is the mean over the ranks.
        received = self._run(f"broadcast_{root}", collective, wire, self._others_share(wire))
        return from_copy(received, x.dtype)

    def barrier(self) -> None:
        self.all_reduce(tf.zeros([self.size], tf.int32))

    def bytes_sent(self) -> int:
        return self._order.bytes_sent()

    def close(self) -> None:
        """Waits for all workers, and takes leave."""
        self.barrier()
        if self._membership is not None:
            self._membership.close()
        hvd.shutdown()

    def _exchange_and_add(self, x: tf.Tensor) -> tf.Tensor:
        wire = copyable(to_wire(x))

        def collective(name):
            return mpi_ops.alltoall(wire, name=name, ignore_name_scope=True)

        received = self._run("all_to_all", collective, wire, self._others_share(wire))
        slices = tf.reshape(from_copy(received, x.dtype), [self.size, -1])
        if is_16_bit(x.dtype):
            slices = tf.cast(slices, tf.float32)
        return tf.cast(tf.reduce_sum(slices, axis=0), x.dtype)

    def _run(
        self,
        verb: str,
        collective: Callable[[str], tf.Tensor],
        wire: tf.Tensor,
        sent: tf.Tensor | int,
    ) -> tf.Tensor:
        if wire.shape.num_elements() == 0:
            return wire
        # Workers know a collective by its name; by default that counts what was traced before.
        name = re.sub("[^A-Za-z0-9_]+", "_", f"revkeras_{verb}_{wire.dtype.name}_{wire.shape}")
        with tf.device("CPU:0"):
            return self._order.run(lambda: collective(name), sent)

    def _others_share(self, x: tf.Tensor) -> tf.Tensor | int:
        return size_in_bytes(x) * (self.size - 1) // self.size

    def _join(self, cluster: Cluster) -> membership.Membership:
        """Rank 0 takes a free port, and tells the others by Horovod."""
        if self.rank != 0:
            return membership.join(cluster, self._told(""))
        host = os.environ.get("HOROVOD_HOSTNAME") or socket.gethostname()
        listener = meeting.listen(f"{'127.0.0.1' if host == 'localhost' else host}:0")
        address = f"{listener.getsockname()[0]}:{listener.getsockname()[1]}"
        if address.startswith("0.0.0.0:"):
            address = f"{host}:{listener.getsockname()[1]}"
        self._told(address)
        return membership.join(cluster, address, listener)

    def _told(self, address: str) -> str:
        text = tf.constant(list(address.encode().ljust(_ADDRESS_BYTES)), tf.int32)
        return bytes(self.broadcast(text).numpy().astype("uint8")).decode().strip()


def _computable(wire: tf.Tensor) -> tf.Tensor:
    return tf.cast(wire, tf.float32) if wire.dtype == tf.bfloat16 else wire
