"""The workers' control channel: agreement at the start, heartbeats, and which rank failed.

It is independent of the engine: a star of TCP connections around rank 0, with a thread
for each. Where a collective would hang, this one knows who is missing.
"""

import atexit
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable

from revkeras.distribute import rendezvous
from revkeras.distribute.channel import Connection
from revkeras.distribute.cluster import Cluster
from revkeras.distribute.stalls import Progress, Stalls

# In seconds; together less than a minute.
BEAT = 1.0
HUNG_AFTER = 25.0
GRACE = 15.0  # for the main thread to raise and to end the process by itself
LEFT_AFTER = 5.0  # that a collective goes on when a worker has ended, which may have been its last

HANG_TIMEOUT = "REVKERAS_HANG_TIMEOUT"
_IDLE_AFTER = 40.0
_BUSY_AFTER = 1800.0

_ENDED = "ended, by `sys.exit()` or at the end of its script, while others wait for it"

_joined = None


class WorkerFailure(RuntimeError):
    """Another worker died, hung, or ended with an error.

    Attributes:
        rank: Integer, that worker's rank.
    """

    def __init__(self, rank: int, message: str) -> None:
        super().__init__(message)
        self.rank = rank


def join(
    cluster: Cluster, address: str | None = None, listener: socket.socket | None = None
) -> "Membership":
    """Meets all workers of a cluster, once in a process.

    Args:
        cluster: A `Cluster` of two or more workers.
        address: Where rank 0 listens, as `"host:port"`. Defaults to what the cluster
            says.
        listener: Rank 0's socket, if it listens already.

    Returns:
        A `Membership`.

    Raises:
        RuntimeError: if a worker cannot be reached, or was told of another cluster.
    """
    global _joined
    if _joined is None:
        address = address or cluster.control_address
        if cluster.rank == 0:
            peers = rendezvous.gather(cluster, listener or rendezvous.listen(address), address)
        else:
            peers = rendezvous.connect(cluster, address)
        _joined = Membership(cluster, peers)
    return _joined


def hang_timeout() -> float:
    """How long a worker may do nothing while others wait in a collective. In seconds."""
    text = os.environ.get(HANG_TIMEOUT, _IDLE_AFTER)
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"Invalid environment: expected {HANG_TIMEOUT} to be a number of seconds, received "
            f"{HANG_TIMEOUT}={text!r}."
        ) from None


def agree(facts: dict) -> None:
    """Makes sure that all workers have the same facts.

    Args:
        facts: Dictionary of names and JSON values, such as `{"stage": 3}`. To be called
            by all workers the same number of times.

    Raises:
        ValueError: if they differ, on all workers; says which rank differs in what.
        WorkerFailure: if a worker fails meanwhile.

    Example:

    >>> from revkeras.distribute import membership
    >>> membership.agree({"stage": 3})  # one process agrees with itself
    """
    everyone = exchange(facts)
    differences = _differences(everyone)
    if differences:
        raise ValueError("The workers do not train the same: " + " ".join(differences))


def exchange(value: object) -> list:
    """Gives each worker the JSON values of all, in order of ranks; waits for all.

    Raises:
        WorkerFailure: if a worker fails meanwhile.
    """
    return [value] if _joined is None else _joined.exchange(value)


class Membership:
    """This process's place among workers that have met; `join` makes it."""

    def __init__(self, cluster: Cluster, peers: dict[int, Connection]) -> None:
        self._cluster = cluster
        self._peers = peers
        self._heard = {rank: time.monotonic() for rank in peers}
        self._left: dict[int, float] = {}  # by rank, when
        idle = hang_timeout()
        self._stalls = Stalls(idle, max(idle, _BUSY_AFTER))
        self._exchanges: dict[int, dict[int, object]] = {}
        self._exchanged = self._exchanged_fully = 0
        # Tells how far this worker is with its engine's collectives.
        self.progress: Callable[[], Progress] = Progress
        self._reading = threading.Lock()
        self._changed = threading.Condition()
        self._failure: WorkerFailure | None = None
        self._callbacks: list[Callable[[str], object]] = []
        self._closed = False
        for rank in peers:
            self._thread(self._listen, rank)
        self._thread(self._watch)
        self._hook = sys.excepthook
        sys.excepthook = self._report_uncaught
        atexit.register(self._at_exit)

    @property
    def failure(self) -> WorkerFailure | None:
        """The first failure of another worker; `None` while all is well."""
        return self._failure

    def on_failure(self, callback: Callable[[str], object]) -> None:
        """Has `callback(message)` called, in a thread, when another worker fails."""
        self._callbacks.append(callback)

    def exchange(self, value: object) -> list:
        with self._changed:
            number = self._exchanged
            self._exchanged += 1
        message = {"exchange": number, "value": value, "rank": self._cluster.rank}
        if self._cluster.rank == 0:
            self._collect(message)
        else:
            self._peers[0].send(message)
        with self._changed:
            while len(self._exchanges.get(number, ())) < self._cluster.size:
                if self._failure is not None:
                    raise self._failure
                self._changed.wait(BEAT)
            values = self._exchanges.pop(number)
            self._exchanged_fully += 1
        return [values[rank] for rank in range(self._cluster.size)]

    def close(self) -> None:
        """Takes leave, so that the end of this process is no failure to others."""
        with self._reading:  # which must not go on while Python ends
            was_closed, self._closed = self._closed, True
        if not was_closed:
            self._send_all({"leave": self._cluster.rank})

    def _collect(self, message: dict) -> None:
        """Takes in one rank's value; rank 0 passes them on when it has all."""
        number = message["exchange"]
        with self._changed:
            values = self._exchanges.setdefault(number, {})
            values[message["rank"]] = message["value"]
            complete = self._cluster.rank == 0 and len(values) == self._cluster.size
            everyone = dict(values) if complete else {}
            self._changed.notify_all()
        for rank, value in everyone.items():
            self._send_all({"exchange": number, "value": value, "rank": rank})

    def _listen(self, rank: int) -> None:
        while True:
            message = self._peers[rank].receive()
            if message is None:
                if not self._closed and rank not in self._left:
                    self._fail(rank, "died: its connection closed without a word")
                return
            now = self._heard[rank] = time.monotonic()
            if "beat" in message:
                self._note(rank, Progress(*message["progress"]), message["cpu"], now)
            elif "exchange" in message:
                self._collect(message)
            elif "failed" in message:
                self._fail(message["failed"], message["why"])
            elif "leave" in message:
                self._take_leave(message, now)

    def _take_leave(self, message: dict, now: float) -> None:
        with self._changed:
            self._left.setdefault(message["leave"], now)
            self._stalls.forget(message["leave"])
            self._changed.notify_all()
        if self._cluster.rank == 0:
            self._send_all(message)

    def _note(self, rank: int, progress: Progress, cpu: float, now: float) -> None:
        with self._changed:
            if rank not in self._left:
                self._stalls.note(rank, progress, cpu, now)

    def _own_progress(self) -> Progress:
        """Of the engine's collectives, and of exchanges, which all workers take part in too."""
        begun, keys, ended = self.progress()
        return Progress(begun + self._exchanged, keys, ended + self._exchanged_fully)

    def _beat(self) -> None:
        with self._reading:
            if self._closed:
                return
            progress = self._own_progress()
        cpu = time.process_time()
        self._note(self._cluster.rank, progress, cpu, time.monotonic())
        self._send_all({"beat": self._cluster.rank, "progress": progress, "cpu": cpu})

    def _watch(self) -> None:
        awake = time.monotonic()
        while not self._closed and self._failure is None:
            self._beat()
            time.sleep(BEAT)
            now = time.monotonic()
            if now - awake > HUNG_AFTER / 2:  # it was this process that stood still
                self._heard = dict.fromkeys(self._heard, now)
                with self._changed:
                    self._stalls.postpone(now)
            awake = now
            for rank, heard in self._heard.items():
                if rank not in self._left and now - heard > HUNG_AFTER:
                    silence = f"{now - heard:.0f} seconds"
                    self._fail(rank, f"hangs: nothing was heard of it for {silence}")
            self._watch_collectives(now)

    def _watch_collectives(self, now: float) -> None:
        with self._changed:
            left = min(self._left, key=self._left.get, default=None)
            since_it_left = 0.0 if left is None else now - self._left[left]
            waited = min(self._stalls.waited(self._cluster.rank, now), since_it_left)
            # Rank 0 hears of all.
            culprit = self._stalls.culprit(now) if self._cluster.rank == 0 else None
        if waited > LEFT_AFTER:
            self._fail(left, _ENDED)
        elif culprit is not None:
            self._fail(*culprit)

    def _fail(self, rank: int, why: str) -> None:
        own = self._cluster.rank
        with self._changed:
            if self._failure is not None or self._closed:
                return
            who = "This worker stops" if rank == own else f"Worker {own} stops for it"
            message = f"{self._name(rank)} {why}. {who}."
            self._failure = WorkerFailure(rank, message)
            self._changed.notify_all()
        print(message, file=sys.stderr, flush=True)
        if rank == own:  # where it hangs
            traceback.print_stack(sys._current_frames().get(threading.main_thread().ident))
        self._send_all({"failed": rank, "why": why})  # rank 0 tells all
        self._thread(self._end)
        for callback in self._callbacks:
            callback(message)

    def _end(self) -> None:
        time.sleep(GRACE)
        self._exit_now()

    def _exit_now(self) -> None:
        print(self._failure, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # a main thread that waits inside a collective cannot be interrupted

    def _report_uncaught(self, kind, error, traceback) -> None:
        self._hook(kind, error, traceback)
        if self._closed:
            return
        # The engine may have noticed first that another worker is gone, and not which.
        waits = self._own_progress().waits
        with self._changed:
            self._changed.wait_for(
                lambda: self._failure is not None or (waits and self._left), timeout=2 * BEAT
            )
        if self._failure is None and waits and self._left:
            self._fail(min(self._left, key=self._left.get), _ENDED)
        if self._failure is None:
            with self._reading:
                self._closed = True  # what the others say of it is not news
            why = f"ended with {kind.__name__}: {error}"
            self._send_all({"failed": self._cluster.rank, "why": why})
            self._send_all({"leave": self._cluster.rank})

    def _at_exit(self) -> None:
        if self._failure is not None:
            self._exit_now()  # what would still be torn down may wait for the one that is gone
        self.close()

    def _send_all(self, message: dict) -> None:
        for connection in self._peers.values():
            connection.send(message)

    def _name(self, rank: int) -> str:
        tasks = self._cluster.tasks
        return f"Worker {rank} ({tasks[rank][2]})" if tasks else f"Worker {rank}"

    def _thread(self, target: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=target, args=arguments, daemon=True).start()


def _differences(everyone: list[dict]) -> list[str]:
    lines = []
    for name in sorted(set().union(*everyone)):
        values = [facts.get(name) for facts in everyone]
        common = max(values, key=values.count)
        ranks = [rank for rank, value in enumerate(values) if value == common]
        lines += [
            f"Rank {rank} has {name}={value!r}, where rank {', '.join(map(str, ranks))} has "
            f"{name}={common!r}."
            for rank, value in enumerate(values)
            if value != common
        ]
    return lines
