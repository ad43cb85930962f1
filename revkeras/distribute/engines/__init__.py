"""Communication between workers: one small set of verbs, over TensorFlow, Horovod, or nothing."""

from revkeras.distribute.cluster import Cluster, describe
from revkeras.distribute.engines.local import LocalEngine

_NAMES = ("auto", "local", "tensorflow", "horovod")

_chosen = None


def choose(engine: str = "auto"):  # noqa: ANN201  the engines share their verbs, and no class
    """Returns the process's engine; it is made once and kept.

    All engines have `name`, `runtime`, `rank`, `size`, `all_reduce(x, op="sum")`,
    `reduce_scatter(x)`, `all_gather(x)`, `broadcast(x, root=0)`, `barrier()`, `bytes_sent()` and
    `close()`, in eager code and in graphs. Collectives run in the order in which they are called.

    Args:
        engine: One of `"auto"`, `"local"`, `"tensorflow"`, `"horovod"`. `"auto"` takes
            `"horovod"` where Horovod's launcher started the process, `"tensorflow"`
            where `TF_CONFIG` or SLURM names more than one worker, and else `"local"`.

    Returns:
        An engine.

    Raises:
        ValueError: if the name is unknown, if the environment does not describe a
            cluster for that engine, or if another engine is already in use.

    Example:

    >>> from revkeras.distribute import engines
    >>> engines.choose("local").size
    1
    """
    global _chosen
    if engine not in _NAMES:
        raise ValueError(
            f"Invalid value for argument `engine`: expected one of {_NAMES}, received "
            f"engine={engine!r}."
        )
    if _chosen is None:
        cluster = describe()
        _chosen = _start(_pick(cluster) if engine == "auto" else engine, cluster)
    if engine not in ("auto", _chosen.name):
        raise ValueError(
            f"Invalid value for argument `engine`: this process already communicates by "
            f"'{_chosen.name}', and has one engine in its life; received engine={engine!r}."
        )
    return _chosen


def _pick(cluster: Cluster) -> str:
    if cluster.source == "Horovod":
        return "horovod"
    return "tensorflow" if cluster.size > 1 else "local"


def _start(name: str, cluster: Cluster):
    if name == "local":
        return LocalEngine()
    if name == "horovod":
        from revkeras.distribute.engines.horovod import HorovodEngine

        return HorovodEngine(cluster)
    from revkeras.distribute.engines.tensorflow import TensorFlowEngine

    return TensorFlowEngine(cluster)
