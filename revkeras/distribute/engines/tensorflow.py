"""TensorFlow's own cluster runtime and collective operations; nothing else to install."""

import zlib
from collections.abc import Callable

import tensorflow as tf
from tensorflow.core.protobuf import tensorflow_server_pb2
from tensorflow.python.distribute.cluster_resolver import slurm_cluster_resolver
from tensorflow.python.eager import context
from tensorflow.python.ops import gen_collective_ops

from revkeras.distribute import membership
from revkeras.distribute.cluster import Cluster
from revkeras.distribute.engines.ordering import Order, size_in_bytes
from revkeras.distribute.engines.wire import copyable, from_copy, is_16_bit, mean_of, to_wire

_GROUP = 1
_MERGES = {"sum": "Add", "mean": "Add", "max": "Max", "min": "Min"}
_ANY_NUMBER = 2**16


class TensorFlowEngine:
    """The verbs of an engine on TensorFlow's collective operations, over gRPC.

    Args:
        cluster: A `Cluster` with the addresses of all workers.

    Raises:
        ValueError: if the cluster has no addresses.
        RuntimeError: if TensorFlow's runtime already runs in this process, or the own
            address cannot be listened on.
    """

    name = "tensorflow"

    def __init__(self, cluster: Cluster) -> None:
        if not cluster.tasks:
            raise ValueError(
                "Invalid value for argument `engine`: 'tensorflow' needs the addresses of all "
                "workers, in TF_CONFIG or from SLURM; the environment has none. On one machine, "
                "start the script by `python -m revkeras.distribute.launch --workers N script.py`."
            )
        self.rank, self.size = cluster.rank, cluster.size
        self._membership = membership.join(cluster)
        _start_server(cluster)
        self._membership.on_failure(_abort)
        gpus = tf.config.list_physical_devices("GPU")
        self._device = "GPU:0" if gpus else "CPU:0"
        self._has_reduce_scatter = bool(gpus)
        self._order = Order()
        self._numbers: dict[tuple, int] = {}

    def all_reduce(self, x: tf.Tensor, op: str = "sum") -> tf.Tensor:
        if op not in _MERGES:
            raise ValueError(
                f"Invalid value for argument `op`: expected one of {tuple(_MERGES)}, received "
                f"op={op!r}."
            )
        x = tf.convert_to_tensor(x)
        wire = to_wire(x)

        def collective(key):
            return gen_collective_ops.collective_reduce_v2(
                wire, self.size, _GROUP, key, [], _MERGES[op], "Id"
            )

        reduced = self._run(f"reduce_{op}", collective, wire, 2 * self._others_share(wire))
        if op == "mean":
            reduced = mean_of(reduced, self.size)
        return tf.ensure_shape(tf.cast(reduced, x.dtype), x.shape)

    def reduce_scatter(self, x: tf.Tensor) -> tf.Tensor:
        x = tf.convert_to_tensor(x)
        wire = to_wire(x)

        def collective(key):
            if self._has_reduce_scatter:
                return gen_collective_ops.collective_reduce_scatter_v2(
                    wire, self.size, _GROUP, key, [], "Add", "Id", communication_hint="nccl"
                )
            # The CPU has no such kernel. An all-to-all moves as many bytes, an all-reduce twice.
            slices = tf.reshape(wire, [self.size, -1])
            return gen_collective_ops.collective_all_to_all_v2(slices, self.size, _GROUP, key, [])

        received = self._run("reduce_scatter", collective, wire, self._others_share(wire))
        if self._has_reduce_scatter or received is wire:
            return tf.cast(received, x.dtype)
        if is_16_bit(x.dtype):
            received = tf.cast(received, tf.float32)
        return tf.cast(tf.reduce_sum(received, axis=0), x.dtype)

    def all_gather(self, x: tf.Tensor) -> tf.Tensor:
        x = tf.convert_to_tensor(x)
        wire = copyable(to_wire(x))

        def collective(key):
            return gen_collective_ops.collective_gather_v2(wire, self.size, _GROUP, key, [])

        sent = (self.size - 1) * size_in_bytes(wire)
        return from_copy(self._run("all_gather", collective, wire, sent), x.dtype)

    def broadcast(self, x: tf.Tensor, root: int = 0) -> tf.Tensor:
        x = tf.convert_to_tensor(x)
        wire = copyable(to_wire(x))

        def collective(key):
            if self.rank == root:
                return gen_collective_ops.collective_bcast_send_v2(wire, self.size, _GROUP, key)
            return gen_collective_ops.collective_bcast_recv_v2(
                self.size, _GROUP, key, tf.shape(wire), wire.dtype
            )

        # The root's bytes reach all others along a tree: this is the mean over the ranks.
        received = self._run(f"broadcast_{root}", collective, wire, self._others_share(wire))
        return tf.ensure_shape(from_copy(received, x.dtype), x.shape)

    def barrier(self) -> None:
        self.all_reduce(tf.zeros([self.size], tf.int32))

    def bytes_sent(self) -> int:
        return self._order.bytes_sent()

    def close(self) -> None:
        """Waits for all workers and takes leave; the runtime itself ends with the process."""
        self.barrier()
        self._membership.close()

    def _run(
        self,
        verb: str,
        collective: Callable[[int | tf.Tensor], tf.Tensor],
        wire: tf.Tensor,
        sent: tf.Tensor | int,
    ) -> tf.Tensor:
        if wire.shape.num_elements() == 0:  # some of the kernels end the process
            return wire
        key = self._key(verb, wire)
        with tf.device(self._device):
            return self._order.run(lambda: collective(key), sent)

    def _key(self, verb: str, wire: tf.Tensor) -> int | tf.Tensor:
        """The number by which TensorFlow knows the same collective on all workers.

        It comes from what the collective is, not from how many were traced before it: a worker
        that traces a function once more than others still meets them. Collectives
        run one after the other, so those that are alike can share a number; one number's
        have to be of one shape, so it goes into the number, at run time if need be.
        """
        if not wire.shape.is_fully_defined():
            number = self._number(verb, wire.dtype.name, tuple(wire.shape))
            shape = tf.strings.reduce_join(tf.strings.as_string(tf.shape(wire)), separator=",")
            return tf.cast(tf.strings.to_hash_bucket_fast(shape, 2**30), tf.int32) ^ number
        return self._number(verb, wire.dtype.name, tuple(wire.shape))

    def _number(self, *signature: object) -> int:
        if signature not in self._numbers:
            number = zlib.crc32(repr(signature).encode()) >> 1
            while number in self._numbers.values():
                number += 1
            self._numbers[signature] = number
        return self._numbers[signature]

    def _others_share(self, x: tf.Tensor) -> tf.Tensor | int:
        return size_in_bytes(x) * (self.size - 1) // self.size


def slurm_addresses() -> list[str]:
    """The addresses of a SLURM step's tasks in order of ranks, by TensorFlow's resolver."""
    # It also deals out GPUs, and fails on nodes without; SLURM's own --gpus-per-task does that.
    resolver = slurm_cluster_resolver.SlurmClusterResolver(
        gpus_per_node=_ANY_NUMBER, gpus_per_task=1, auto_set_gpu=False
    )
    return resolver.cluster_spec().job_tasks("worker")


def _start_server(cluster: Cluster) -> None:
    runtime = context.context()
    if runtime._initialized:
        raise RuntimeError(
            "TensorFlow's runtime already runs in this process and cannot join a cluster: "
            "variables and datasets that exist would lose their device. Expected "
            "`ZeroStrategy(...)` before anything that makes tensors, variables or datasets, or "
            "lists logical devices."
        )
    job, index, address = cluster.tasks[cluster.rank]
    leader, number, _ = cluster.tasks[0]
    runtime.configure_collective_ops(
        collective_leader=f"/job:{leader}/replica:0/task:{number}",
        scoped_allocator_enabled_ops=(),
        device_filters=(f"/job:{job}/task:{index}",),
    )
    jobs: dict[str, dict[int, str]] = {}
    for name, place, at in cluster.tasks:
        jobs.setdefault(name, {})[place] = at
    runtime.enable_collective_ops(
        tensorflow_server_pb2.ServerDef(
            cluster=tf.train.ClusterSpec(jobs).as_cluster_def(),
            default_session_config=runtime.config,
            job_name=job,
            task_index=index,
            protocol="grpc",
        )
    )
    try:
        runtime.ensure_initialized()
    except tf.errors.OpError as error:
        raise RuntimeError(
            f"Worker {cluster.rank} cannot listen on its address {address} ({cluster.source}): "
            f"{error.message}. Is the port in use by another process?"
        ) from error


def _abort(message: str) -> None:
    """Makes collectives that wait, and all later ones, raise an error with this message."""
    context.context().abort_collective_ops(tf.errors.UNAVAILABLE, message)
