"""Which worker keeps the others waiting in a collective, by how far each of them is."""

import dataclasses
from typing import NamedTuple

_IDLE = 0.1  # of a core: a process that uses less does nothing


class Progress(NamedTuple):
    """How far a worker is in the sequence of collectives that all of them run.

    Attributes:
        begun: Integer, how many it began.
        keys: Integer, the sum of what names them, by which two sequences differ.
        ended: Integer, how many are through.
    """

    begun: int = 0
    keys: int = 0
    ended: int = 0

    @property
    def waits(self) -> bool:
        """Whether the worker is in a collective."""
        return self.begun > self.ended


@dataclasses.dataclass
class _Seen:
    """A worker: what it last said, and when it last got on, and computed. In seconds."""

    progress: Progress
    cpu: float
    heard: float
    moved: float
    active: float


class Stalls:
    """What is known of each worker's progress.

    A worker that is behind while others wait may be busy with something of its own, such as
    to save or to evaluate, or hang. The one uses its processor, the other does not.

    Args:
        idle: Float, after how long a worker that does nothing hangs. In seconds.
        busy: Float, after how long one that computes does. In seconds.
    """

    def __init__(self, idle: float, busy: float) -> None:
        self._idle, self._busy = idle, busy
        self._workers: dict[int, _Seen] = {}

    def note(self, rank: int, progress: Progress, cpu: float, now: float) -> None:
        """Takes down what a worker says: its progress, and its processor time in seconds."""
        seen = self._workers.setdefault(rank, _Seen(progress, cpu, now, now, now))
        if progress != seen.progress:
            seen.moved = now
        if cpu - seen.cpu > _IDLE * (now - seen.heard):
            seen.active = now
        seen.progress, seen.cpu, seen.heard = progress, cpu, now

    def forget(self, rank: int) -> None:
        """No longer counts a worker, which has left."""
        self._workers.pop(rank, None)

    def postpone(self, now: float) -> None:
        """Starts all waiting anew: it was this process that stood still."""
        for seen in self._workers.values():
            seen.heard = seen.moved = seen.active = now

    def waited(self, rank: int, now: float) -> float:
        """How long a worker has been in one collective. In seconds."""
        seen = self._workers.get(rank)
        return now - seen.moved if seen and seen.progress.waits else 0.0

    def culprit(self, now: float) -> tuple[int, str] | None:
        """The worker that the others wait for, and why it is that one; `None` if all is well."""
        place = max((seen.progress.begun for seen in self._workers.values()), default=0)
        behind = {r: s for r, s in self._workers.items() if s.progress.begun < place}
        first = {r: s for r, s in self._workers.items() if r not in behind and s.progress.waits}
        waited = max((now - seen.moved for seen in first.values()), default=0.0)
        if not behind:
            return self._astray(first, now)
        why = f"hangs: others have waited for it in a collective for {waited:.0f} seconds"
        for rank, late in sorted(behind.items(), key=lambda pair: pair[1].progress.begun):
            # No more is known of a worker than it has told.
            still = min(waited, late.heard - late.moved)
            # One that is in a collective itself, an earlier one, may still be receiving.
            if not late.progress.waits and min(still, late.heard - late.active) >= self._idle:
                return rank, f"{why}, while it does nothing"
            if still >= self._busy:
                return rank, f"{why}, while it computes"
        return None

    def _astray(self, waiting: dict[int, _Seen], now: float) -> tuple[int, str] | None:
        """The worker that is in another collective than the others, if all are in one."""
        keys = {rank: waiting[rank].progress.keys for rank in sorted(waiting)}
        waited = min((now - seen.moved for seen in waiting.values()), default=0.0)
        if len(keys) < len(self._workers) or len(set(keys.values())) < 2 or waited < self._idle:
            return None
        everyones = [*keys.values()]
        common = max(everyones, key=everyones.count)
        rank = next(rank for rank, key in keys.items() if key != common)
        return rank, f"is in another collective than others since {waited:.0f} seconds"
