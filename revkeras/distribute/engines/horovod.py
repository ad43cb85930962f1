"""Horovod's collective operations, where `horovodrun` started the process."""

import dataclasses
import os
import re
import socket
from collections.abc import Callable

import tensorflow as tf

from revkeras._engine.tensorflow._private import is_stateful
from revkeras.distribute import membership, rendezvous
from revkeras.distribute.cluster import Cluster
from revkeras.distribute.engines.collectives import Collectives
from revkeras.distribute.engines.wire import is_16_bit

try:
    import horovod.tensorflow as hvd
    from horovod.tensorflow import mpi_ops
except ImportError as error:  # said when the engine is asked for
    hvd, _missing = None, error

_OPERATIONS = {"sum": "Sum", "max": "Max", "min": "Min"}
_ADDRESS_BYTES = 256


class HorovodEngine(Collectives):
    """The verbs of an engine on Horovod.

    Args:
        cluster: What Horovod's launcher left in the environment, as a `Cluster`.

    Raises:
        ImportError: if Horovod cannot be imported, or was not built for this.
        RuntimeError: if a worker cannot be reached.
    """

    name = "horovod"

    def __init__(self, cluster: Cluster) -> None:
        if hvd is None:
            raise ImportError(
                "Invalid value for argument `engine`: 'horovod' needs Horovod, which cannot be "
                f"imported: {_missing}. `scripts/build_horovod.sh PYTHON` builds and installs it."
            )
        if not is_stateful("HorovodAllreduce"):
            raise ImportError(
                "Invalid value for argument `engine`: 'horovod' needs a Horovod whose operations "
                "are stateful: TensorFlow takes others for pure functions, leaves some of them out "
                "on some workers, and the rest wait forever. Expected the one that "
                "`scripts/build_horovod.sh PYTHON` builds and installs."
            )
        hvd.init()
        _take_own_gpu(hvd.local_rank())
        super().__init__(hvd.rank(), hvd.size())
        self._membership = None
        if self.size > 1:
            self._membership = self._join(
                dataclasses.replace(
                    cluster, source="Horovod", rank=self.rank, size=self.size, tasks=()
                )
            )
            self._membership.progress = self._order.progress

    def close(self) -> None:
        """Waits for all workers, and takes leave."""
        self.barrier()
        if self._membership is not None:
            self._membership.close()
        hvd.shutdown()

    def _key(self, verb: str, wire: tf.Tensor) -> str:
        # By default Horovod's names count what was traced before.
        return re.sub("[^A-Za-z0-9_]+", "_", f"revkeras_{verb}_{wire.dtype.name}_{wire.shape}")

    def _summable(self, wire: tf.Tensor) -> tf.Tensor:
        return tf.cast(wire, tf.float32) if wire.dtype == tf.bfloat16 else wire  # Gloo has none

    def _reduce(self, wire: tf.Tensor, op: str, key: str) -> tf.Tensor:
        return mpi_ops._allreduce(wire, key, getattr(hvd, _OPERATIONS[op]), ignore_name_scope=True)

    def _gather(self, wire: tf.Tensor, key: str) -> tf.Tensor:
        return mpi_ops.allgather(wire, key, ignore_name_scope=True)

    def _send(self, wire: tf.Tensor, root: int, key: str) -> tf.Tensor:
        return mpi_ops.broadcast(wire, root, key, ignore_name_scope=True)

    def _exchange(self, wire: tf.Tensor, key: str) -> tf.Tensor:
        return mpi_ops.alltoall(wire, name=key, ignore_name_scope=True)

    def _scatter_kernel(self, wire: tf.Tensor) -> Callable | None:
        # Gloo has no bfloat16, adds 16 bits in 16 bits, and sends more than it has to
        # where the number of workers is not a power of two. An all-to-all does not.
        fit = not is_16_bit(wire.dtype) and self.size & (self.size - 1) == 0
        return self._scatter if fit else None

    def _scatter(self, wire: tf.Tensor, key: str) -> tf.Tensor:
        return mpi_ops._reducescatter(wire, key, hvd.Sum, ignore_name_scope=True)

    def _join(self, cluster: Cluster) -> membership.Membership:
        """Rank 0 takes a free port, and tells the others by Horovod."""
        if self.rank != 0:
            return membership.join(cluster, self._told(""))
        host = os.environ.get("HOROVOD_HOSTNAME") or socket.gethostname()
        listener = rendezvous.listen(f"{'127.0.0.1' if host == 'localhost' else host}:0")
        address = f"{listener.getsockname()[0]}:{listener.getsockname()[1]}"
        if address.startswith("0.0.0.0:"):
            address = f"{host}:{listener.getsockname()[1]}"
        self._told(address)
        return membership.join(cluster, address, listener)

    def _told(self, address: str) -> str:
        text = tf.constant(list(address.encode().ljust(_ADDRESS_BYTES)), tf.int32)
        return bytes(self.broadcast(text).numpy().astype("uint8")).decode().strip()


def _take_own_gpu(local_rank: int) -> None:
    """Leaves this process one of the machine's GPUs, where it sees several."""
    gpus = tf.config.get_visible_devices("GPU")
    if len(gpus) > 1:
        tf.config.set_visible_devices(gpus[local_rank % len(gpus)], "GPU")
