"""Who holds what: flat buckets, the slices that ranks own, and pieces of variables.

Pure functions of sizes, so that every rank computes the same partition alone.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Segment:
    """A range of a flattened variable, or padding.

    Attributes:
        variable: Which variable, as its position in the model's list; `None` for
            padding.
        start: Where the range begins. In elements.
        stop: Where it ends.
    """

    variable: int | None
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclasses.dataclass(frozen=True)
class Bucket:
    """What one collective moves: an equal slice for each rank, one after the other.

    Attributes:
        slices: For each rank, the segments of its slice in order, padding included.
    """

    slices: tuple[tuple[Segment, ...], ...]

    @property
    def slice_size(self) -> int:
        """The length of a rank's slice. In elements."""
        return sum(segment.size for segment in self.slices[0])

    @property
    def variables(self) -> tuple[int, ...]:
        """The variables in it, in order."""
        found = (s.variable for s in itertools.chain(*self.slices) if s.variable is not None)
        return tuple(dict.fromkeys(found))

    @property
    def runs(self) -> list[Segment]:
        """The whole bucket as segments, joined where one ends where the next begins."""
        return _joined(itertools.chain(*self.slices))


@dataclasses.dataclass(frozen=True)
class Piece:
    """A range of a variable that a rank owns, and where its buckets have it.

    Attributes:
        segment: The range.
        sources: `(bucket, index)` of the segments that it is made of: which bucket,
            and which segment of the rank's slice in it.
    """

    segment: Segment
    sources: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class StatePiece:
    """A part of the training state that this rank writes to checkpoints.

    Attributes:
        name: String, unique in the model and the same at any stage and number of
            workers, such as `"model/block_3/dense/kernel"` or
            `"optimizer/adam/momentum/block_3/dense/kernel"`.
        shape: The shape of the whole tensor.
        dtype: Its dtype.
        start: Where this rank's range of the flattened whole begins. In elements.
        stop: Where it ends. Ranks that have nothing to write have an empty range.
        read: `read()` returns the values of that range, a 1-D array.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int
    stop: int
    read: Callable[[], np.ndarray]


def even_buckets(sizes: Sequence[int], n_ranks: int, bucket_size: int) -> list[Bucket]:
    """Cuts each bucket into equal slices, wherever that cuts a variable.

    Buckets take the variables from the last to the first, which is the order in which
    their gradients come, each until it has `bucket_size` elements.

    Args:
        sizes: The variables' sizes. In elements.
        n_ranks: Integer, how many ranks there are.
        bucket_size: Integer, the least size of a bucket but the last. In elements.
    """
    return [
        _cut([Segment(variable, 0, sizes[variable]) for variable in group], n_ranks)
        for group in grouped(sizes, bucket_size)
    ]


def grouped(sizes: Sequence[int], bucket_size: int) -> list[list[int]]:
    """The variables of each of the `even_buckets`."""
    groups, size = [[]], 0
    for variable in reversed(range(len(sizes))):
        if size >= bucket_size:
            groups.append([])
            size = 0
        groups[-1].append(variable)
        size += sizes[variable]
    return [group for group in groups if group]


def whole_buckets(sizes: Sequence[int], n_ranks: int, bucket_size: int) -> list[Bucket]:
    """Deals whole variables out to the ranks, the largest first to whom has least.

    Each rank's variables, one after the other, are cut at the same places into buckets,
    so that there is padding at the end alone.

    Args:
        sizes: The variables' sizes. In elements.
        n_ranks: Integer, how many ranks there are.
        bucket_size: Integer, the size of a bucket but the last. In elements.
    """
    if not sizes:
        return []
    owned: list[list[int]] = [[] for _ in range(n_ranks)]
    for variable in sorted(range(len(sizes)), key=lambda v: (-sizes[v], v)):
        min(owned, key=lambda own: sum(sizes[v] for v in own)).append(variable)
    length = max(sum(sizes[v] for v in own) for own in owned)
    step = max(bucket_size // n_ranks, 1)
    streams = []
    for own in owned:
        stream = [Segment(v, 0, sizes[v]) for v in sorted(own, reverse=True)]
        streams.append(_padded(stream, length))
    return [
        Bucket(tuple(tuple(_range(stream, start, min(start + step, length))) for stream in streams))
        for start in range(0, length, step)
    ]


def pieces(buckets: Sequence[Bucket], rank: int) -> list[Piece]:
    """The ranges of variables that a rank owns, joined across buckets, in order of variables."""
    found: dict[int, list[tuple[Segment, tuple[int, int]]]] = {}
    for b, bucket in enumerate(buckets):
        for i, segment in enumerate(bucket.slices[rank]):
            if segment.variable is not None:
                found.setdefault(segment.variable, []).append((segment, (b, i)))
    owned = []
    for variable in sorted(found):
        own = sorted(found[variable], key=lambda x: x[0].start)
        (whole,) = _joined(segment for segment, _ in own)
        owned.append(Piece(whole, tuple(source for _, source in own)))
    return owned


def share(size: int, n_ranks: int) -> int:
    """The elements of each rank's slice of a variable that is cut by itself, padding included."""
    return -(-size // n_ranks)


def own_range(size: int, n_ranks: int, rank: int) -> tuple[int, int]:
    """The range of a variable that is cut by itself that a rank holds, without padding."""
    step = share(size, n_ranks)
    return min(rank * step, size), min((rank + 1) * step, size)


def _cut(segments: list[Segment], n_ranks: int) -> Bucket:
    size = share(sum(s.size for s in segments), n_ranks)
    stream = _padded(segments, size * n_ranks)
    return Bucket(tuple(tuple(_range(stream, r * size, (r + 1) * size)) for r in range(n_ranks)))


def _padded(stream: list[Segment], length: int) -> list[Segment]:
    padding = length - sum(s.size for s in stream)
    return [*stream, Segment(None, 0, padding)] if padding else stream


def _range(stream: Sequence[Segment], start: int, stop: int) -> list[Segment]:
    """The elements from `start` to `stop` of segments that lie one after the other."""
    found, offset = [], 0
    for s in stream:
        low, high = max(start - offset, 0), min(stop - offset, s.size)
        if low < high:
            found.append(Segment(s.variable, s.start + low, s.start + high))
        offset += s.size
    return found


def _joined(segments: itertools.chain) -> list[Segment]:
    joined: list[Segment] = []
    for s in segments:
        if joined and joined[-1].variable == s.variable and joined[-1].stop == s.start:
            joined[-1] = Segment(s.variable, joined[-1].start, s.stop)
        else:
            joined.append(s)
    return joined
