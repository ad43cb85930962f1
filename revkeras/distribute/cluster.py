"""Who takes part in the training: what a launcher has left in the environment, read and checked."""

import dataclasses
import json
import os
from collections.abc import Mapping

# In `TF_CONFIG`, the tasks that train; Kubernetes' TFJob calls rank 0 "chief" or "master".
_TRAINING_JOBS = ("chief", "master", "worker")
# The control channel of a cluster stands this far above rank 0's own port.
_CONTROL_OFFSET = 10000
CONTROL_PORT = "REVKERAS_CONTROL_PORT"

_EXAMPLE = (
    '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of one training, and which of them this process is.

    Attributes:
        source: What described it: `"alone"`, `"TF_CONFIG"`, `"SLURM"` or `"Horovod"`.
        rank: Integer, this process's place among the workers, from 0.
        size: Integer, how many workers there are.
        tasks: One (job, index, address) for each worker in order of ranks, such as
            `("worker", 0, "host0:2222")`. Empty where the launcher does not tell.
        control_address: Where rank 0 listens for the control channel, as
            `"host:port"`; `None` where it is not known before the engine runs.
    """

    source: str
    rank: int
    size: int
    tasks: tuple[tuple[str, int, str], ...] = ()
    control_address: str | None = None


def describe(environ: Mapping[str, str] | None = None) -> Cluster:
    """Reads the cluster from the environment.

    Looked for in this order: Horovod's launcher (`HOROVOD_RANK`, `HOROVOD_SIZE`),
    `TF_CONFIG`, and SLURM's `srun` with more than one task.

    Args:
        environ: Mapping of environment variables. Defaults to the process's own.

    Returns:
        A `Cluster`; with one worker and source `"alone"` if there is no launcher.

    Raises:
        ValueError: if a description does not parse or contradicts itself.

    Example:

    >>> from revkeras.distribute.cluster import describe
    >>> describe({}).size
    1
    """
    environ = os.environ if environ is None else environ
    if "HOROVOD_RANK" in environ or "HOROVOD_SIZE" in environ:
        return _from_horovod(environ)
    if environ.get("TF_CONFIG", "").strip():
        return _from_tf_config(environ)
    if _integer(environ, "SLURM_STEP_NUM_TASKS", default=1) > 1:
        return _from_slurm(environ)
    return Cluster("alone", 0, 1)


def _from_horovod(environ: Mapping[str, str]) -> Cluster:
    rank, size = _integer(environ, "HOROVOD_RANK"), _integer(environ, "HOROVOD_SIZE")
    if not 0 <= rank < size:
        raise ValueError(
            "Invalid environment of Horovod's launcher: expected HOROVOD_RANK from 0 to "
            f"HOROVOD_SIZE - 1, received HOROVOD_RANK={rank}, HOROVOD_SIZE={size}."
        )
    if environ.get("TF_CONFIG", "").strip() and _from_tf_config(environ).size != size:
        raise ValueError(
            f"Horovod's launcher started {size} workers (HOROVOD_SIZE), and TF_CONFIG lists "
            f"{_from_tf_config(environ).size}: {environ['TF_CONFIG']}. Expected the same number, "
            "or no TF_CONFIG."
        )
    return Cluster("Horovod", rank, size)


def _from_tf_config(environ: Mapping[str, str]) -> Cluster:
    config = _parse_tf_config(environ["TF_CONFIG"])
    tasks = _training_tasks(config["cluster"])
    task = config.get("task")
    if not tasks and not task:
        return Cluster("TF_CONFIG", 0, 1)
    job, index = _own_task(task)
    ranks = [
        place for place, (name, number, _) in enumerate(tasks) if (name, number) == (job, index)
    ]
    if not ranks:
        listed = ", ".join(f"{name}:{number}" for name, number, _ in tasks) or "none"
        raise ValueError(
            f"Invalid TF_CONFIG: its `task` is {job}:{index}, which is not among the tasks that "
            f"train in its `cluster`: {listed}. Parameter servers and evaluators have no part in "
            "sharded training."
        )
    control = _control_address(tasks[0][2], environ)
    return Cluster("TF_CONFIG", ranks[0], len(tasks), tasks, control)


def _from_slurm(environ: Mapping[str, str]) -> Cluster:
    from revkeras.distribute.engines.tensorflow import slurm_addresses

    addresses = slurm_addresses()
    size = _integer(environ, "SLURM_STEP_NUM_TASKS")
    if len(addresses) != size:
        raise ValueError(
            f"Invalid environment of SLURM: SLURM_STEP_NUM_TASKS={size}, but SLURM_STEP_NODELIST "
            f"and SLURM_STEP_TASKS_PER_NODE give {len(addresses)} tasks: {', '.join(addresses)}."
        )
    tasks = tuple(("worker", index, address) for index, address in enumerate(addresses))
    control = _control_address(addresses[0], environ)
    return Cluster("SLURM", _integer(environ, "SLURM_PROCID"), size, tasks, control)


def _parse_tf_config(text: str) -> dict:
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        start = max(error.pos - 20, 0)
        raise ValueError(
            f"TF_CONFIG does not parse as JSON: {error.msg} at character {error.pos}, near "
            f"{text[start : error.pos + 20]!r}. Expected the form {_EXAMPLE}."
        ) from None
    if not isinstance(config, dict):
        raise ValueError(
            f"Invalid TF_CONFIG: expected an object of the form {_EXAMPLE}, received {text!r}."
        )
    cluster = config.setdefault("cluster", {})
    if not isinstance(cluster, dict):
        raise ValueError(
            "Invalid TF_CONFIG: expected `cluster` to give each job its list of addresses, as in "
            f"{_EXAMPLE}, received cluster={cluster!r}."
        )
    return config


def _training_tasks(cluster: dict) -> tuple[tuple[str, int, str], ...]:
    tasks = []
    for job in _TRAINING_JOBS:
        addresses = cluster.get(job, [])
        if isinstance(addresses, dict):  # TensorFlow's sparse form: index -> address
            addresses = [addresses[key] for key in sorted(addresses, key=int)]
        if not isinstance(addresses, list):
            raise ValueError(
                f"Invalid TF_CONFIG: expected `cluster.{job}` to be a list of addresses, received "
                f"{addresses!r}."
            )
        tasks += [
            (job, index, _checked_address(job, index, a)) for index, a in enumerate(addresses)
        ]
    seen: dict[str, str] = {}
    for job, index, address in tasks:
        if address in seen:
            raise ValueError(
                f"Invalid TF_CONFIG: {seen[address]} and {job}:{index} have the same address "
                f"{address}. Each worker needs a port of its own."
            )
        seen[address] = f"{job}:{index}"
    return tuple(tasks)


def _checked_address(job: str, index: int, address: object) -> str:
    host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(
            f"Invalid TF_CONFIG: expected the address of {job}:{index} as 'host:port' with a port "
            f"from 1 to 65535, received {address!r}."
        )
    return address


def _own_task(task: object) -> tuple[str, int]:
    index = task.get("index") if isinstance(task, dict) else None
    if isinstance(index, str) and index.isdigit():
        index = int(index)
    if not isinstance(index, int) or not isinstance(task.get("type"), str):
        raise ValueError(
            "Invalid TF_CONFIG: expected `task` to say which task this process is, as in "
            f"{_EXAMPLE}, received task={task!r}."
        )
    return task["type"], index


def _control_address(address: str, environ: Mapping[str, str]) -> str:
    host, _, port = address.rpartition(":")
    port = int(port) + _CONTROL_OFFSET
    if port > 65535:
        port -= 2 * _CONTROL_OFFSET
    return f"{host}:{_integer(environ, CONTROL_PORT, default=port)}"


def _integer(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name, default)
    try:
        return int(text)
    except (TypeError, ValueError):
        raise ValueError(
            f"Invalid environment: expected {name} to be an integer, received {name}={text!r}."
        ) from None
