"""How workers find each other: all connect to rank 0, and each is who it says it is."""

import errno
import os
import socket
import time
import zlib

from revkeras.distribute.channel import Connection
from revkeras.distribute.cluster import CONTROL_PORT, Cluster

START_TIMEOUT = "REVKERAS_START_TIMEOUT"
_DEFAULT_SECONDS = 300.0
_RETRY = 0.2


def start_timeout() -> float:
    """How long workers wait for each other at the start. In seconds."""
    return float(os.environ.get(START_TIMEOUT, _DEFAULT_SECONDS))


def listen(address: str) -> socket.socket:
    """Returns a socket that listens on `"host:port"`, for rank 0.

    Raises:
        RuntimeError: if it cannot.
    """
    host, _, port = address.rpartition(":")
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        try:
            listener.bind((host, int(port)))
        except OSError as error:
            # A service's name may stand for an address that is not this machine's own.
            if error.errno != errno.EADDRNOTAVAIL and not isinstance(error, socket.gaierror):
                raise
            listener.bind(("", int(port)))
        listener.listen()
    except OSError as error:
        listener.close()
        raise RuntimeError(
            f"Worker 0 cannot listen on {address}, the workers' control channel: {error.strerror}. "
            f"{CONTROL_PORT} in the environment of all workers names another port."
        ) from error
    return listener


def gather(cluster: Cluster, listener: socket.socket, address: str) -> dict[int, Connection]:
    """Rank 0's part: waits for all others, and returns their connections by rank.

    Raises:
        RuntimeError: if a worker does not come, comes twice, or knows another cluster.
    """
    deadline = time.monotonic() + start_timeout()
    peers: dict[int, Connection] = {}
    problem = None
    with listener:
        while len(peers) < cluster.size - 1 and problem is None:
            listener.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                endpoint, _ = listener.accept()
            except TimeoutError:
                missing = set(range(1, cluster.size)) - set(peers)
                problem = (
                    f"{_names(cluster, missing)} did not connect to worker 0 at {address} within "
                    f"{start_timeout():g} seconds ({START_TIMEOUT} sets how long)."
                )
                break
            connection = Connection(endpoint)
            hello = connection.receive(seconds=5.0)
            if not isinstance(hello, dict) or "rank" not in hello:  # a port scanner, a health check
                connection.close()
                continue
            problem = _objection(cluster, hello, peers)
            peers.setdefault(hello["rank"], connection)
            if problem is not None:
                connection.send({"refused": problem})
    for connection in peers.values():
        connection.send({"refused": problem} if problem else {"welcome": cluster.size})
    if problem is not None:
        raise RuntimeError(problem)
    return peers


def connect(cluster: Cluster, address: str) -> dict[int, Connection]:
    """The others' part: connects to rank 0, and returns that one connection.

    Raises:
        RuntimeError: if rank 0 cannot be reached, or refuses.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + start_timeout()
    while True:
        try:
            connection = Connection(socket.create_connection((host, int(port)), timeout=5.0))
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"Worker {cluster.rank} cannot reach worker 0 at {address}, the workers' "
                    f"control channel: {error}. It tried for {start_timeout():g} seconds "
                    f"({START_TIMEOUT} sets how long)."
                ) from error
            time.sleep(_RETRY)
    connection.send(_hello(cluster))
    # Rank 0 answers when all are there, and may itself have started later.
    answer = connection.receive(seconds=start_timeout() + 10.0)
    if answer is None or "welcome" not in answer:
        reason = (answer or {}).get("refused", "it closed the connection.")
        raise RuntimeError(f"Worker 0 at {address} refused worker {cluster.rank}: {reason}")
    return {0: connection}


def _hello(cluster: Cluster) -> dict:
    known = repr((cluster.source, cluster.tasks)).encode()
    return {"rank": cluster.rank, "size": cluster.size, "cluster": zlib.crc32(known)}


def _objection(cluster: Cluster, hello: dict, peers: dict[int, Connection]) -> str | None:
    rank = hello["rank"]
    if hello["size"] != cluster.size:
        return (
            f"Worker {rank} was told by {cluster.source} that there are {hello['size']} workers, "
            f"worker 0{_at(cluster, 0)} that there are {cluster.size}."
        )
    if hello["cluster"] != _hello(cluster)["cluster"]:
        return (
            f"Worker {rank} and worker 0{_at(cluster, 0)} know different addresses of the workers. "
            f"{cluster.source} has to list the same ones on all of them."
        )
    if rank in peers or not 0 < rank < cluster.size:
        return f"Two workers are told by {cluster.source} to be rank {rank}{_at(cluster, rank)}."
    return None


def _names(cluster: Cluster, ranks: set[int]) -> str:
    names = ", ".join(f"{rank}{_at(cluster, rank)}" for rank in sorted(ranks))
    return f"Worker{'s' if len(ranks) > 1 else ''} {names}"


def _at(cluster: Cluster, rank: int) -> str:
    return f" ({cluster.tasks[rank][2]})" if rank < len(cluster.tasks) else ""
