"""TensorFlow's own cluster runtime and collective operations; nothing else to install."""

from collections.abc import Callable

import tensorflow as tf

from revkeras._engine.tensorflow._private import runtime, runtime_has_started
from revkeras.distribute import membership
from revkeras.distribute.cluster import Cluster
from revkeras.distribute.engines.collectives import Collectives
from revkeras.distribute.engines.keys import CollectiveKeys

_GROUP = 1
_MERGES = {"sum": "Add", "max": "Max", "min": "Min"}
_BY_NCCL = (tf.float16, tf.float32, tf.float64)
_ANY_NUMBER = 2**16


class TensorFlowEngine(Collectives):
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
        self._membership = membership.join(cluster)
        _start_server(cluster)
        self._membership.on_failure(_abort)
        super().__init__(cluster.rank, cluster.size)
        self._membership.progress = self._order.progress
        self._has_gpu = bool(tf.config.get_visible_devices("GPU"))
        self.device = "GPU:0" if self._has_gpu else "CPU:0"
        self._keys = CollectiveKeys()

    def close(self) -> None:
        """Waits for all workers and takes leave; the runtime itself ends with the process."""
        self.barrier()
        self._membership.close()

    def _reduce(self, wire: tf.Tensor, op: str, key: int | tf.Tensor) -> tf.Tensor:
        return tf.raw_ops.CollectiveReduceV2(
            input=wire,
            merge_op=_MERGES[op],
            final_op="Id",
            ordering_token=[],
            **self._of(wire, key),
        )

    def _gather(self, wire: tf.Tensor, key: int | tf.Tensor) -> tf.Tensor:
        return tf.raw_ops.CollectiveGatherV2(input=wire, ordering_token=[], **self._of(wire, key))

    def _send(self, wire: tf.Tensor, root: int, key: int | tf.Tensor) -> tf.Tensor:
        if self.rank == root:
            return tf.raw_ops.CollectiveBcastSendV2(input=wire, **self._of(wire, key))
        return tf.raw_ops.CollectiveBcastRecvV2(
            shape=tf.shape(wire), T=wire.dtype, **self._of(wire, key)
        )

    def _exchange(self, wire: tf.Tensor, key: int | tf.Tensor) -> tf.Tensor:
        slices = tf.reshape(wire, [self.size, -1])
        return tf.raw_ops.CollectiveAllToAllV2(
            input=slices, ordering_token=[], **self._of(wire, key)
        )

    def _scatter_kernel(self, wire: tf.Tensor) -> Callable | None:
        return self._scatter if self._has_gpu else None  # the CPU has no such kernel

    def _scatter(self, wire: tf.Tensor, key: int | tf.Tensor) -> tf.Tensor:
        return tf.raw_ops.CollectiveReduceScatterV2(
            input=wire,
            merge_op="Add",
            final_op="Id",
            ordering_token=[],
            **{**self._of(wire, key), "communication_hint": "nccl"},
        )

    def _of(self, wire: tf.Tensor, key: int | tf.Tensor) -> dict:
        """The arguments that all collectives of a tensor have."""
        return {
            "group_size": self.size,
            "group_key": _GROUP,
            "instance_key": key,
            "communication_hint": self._hint(wire.dtype),
        }

    def _hint(self, dtype: tf.DType) -> str:
        """How the tensor travels: TensorFlow takes NCCL where it is told to, and only on GPUs."""
        return "nccl" if self._has_gpu and dtype in _BY_NCCL else "auto"

    def _key(self, verb: str, wire: tf.Tensor) -> int | tf.Tensor:
        """The number by which TensorFlow knows the same collective on all workers.

        It comes from what the collective is, not from how many were traced before it: a worker
        that traces a function once more than others still meets them. Collectives
        run one after the other, so those that are alike can share a number; one number's
        have to be of one shape, so it goes into the number, at run time if need be.
        """
        number = self._keys.number(verb, wire.dtype.name, tuple(wire.shape))
        if wire.shape.is_fully_defined():
            return number
        shape = tf.strings.reduce_join(tf.strings.as_string(tf.shape(wire)), separator=",")
        return tf.cast(tf.strings.to_hash_bucket_fast(shape, 2**30), tf.int32) ^ number


def slurm_addresses() -> list[str]:
    """The addresses of a SLURM step's tasks in order of ranks, by TensorFlow's resolver."""
    # It also deals out GPUs, and fails on nodes without; SLURM's own --gpus-per-task does that.
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
        gpus_per_node=_ANY_NUMBER, gpus_per_task=1, auto_set_gpu=False
    )
    return resolver.cluster_spec().job_tasks("worker")


def _start_server(cluster: Cluster) -> None:
    if runtime_has_started():
        raise RuntimeError(
            "TensorFlow's runtime already runs in this process and cannot join a cluster: "
            "variables and datasets that exist would lose their device. Expected "
            "`ZeroStrategy(...)` before anything that makes tensors, variables or datasets, or "
            "lists logical devices."
        )
    job, index, address = cluster.tasks[cluster.rank]
    leader, number, _ = cluster.tasks[0]
    runtime().configure_collective_ops(
        collective_leader=f"/job:{leader}/replica:0/task:{number}",
        scoped_allocator_enabled_ops=(),
        device_filters=(f"/job:{job}/task:{index}",),
    )
    jobs: dict[str, dict[int, str]] = {}
    for name, place, at in cluster.tasks:
        jobs.setdefault(name, {})[place] = at
    runtime().enable_collective_ops(
        tf.train.ServerDef(
            cluster=tf.train.ClusterSpec(jobs).as_cluster_def(),
            default_session_config=runtime().config,
            job_name=job,
            task_index=index,
            protocol="grpc",
        )
    )
    try:
        runtime().ensure_initialized()
    except tf.errors.OpError as error:
        raise RuntimeError(
            f"Worker {cluster.rank} cannot listen on its address {address} ({cluster.source}): "
            f"{error.message}. Is the port in use by another process?"
        ) from error


def _abort(message: str) -> None:
    """Makes collectives that wait, and all later ones, raise an error with this message."""
    runtime().abort_collective_ops(tf.errors.UNAVAILABLE, message)
