"""Tensors in flat buckets and out of them."""

import itertools
from collections.abc import Sequence
from typing import Any

from keras import ops

from revkeras.distribute.partition import Bucket, Segment


def pack(bucket: Bucket, flat: dict[int, Any], dtype: str) -> Any:
    """The bucket as a 1-D tensor, of the flattened variables; zeros for those that are missing."""
    return ops.concatenate([_part(run, flat, dtype) for run in bucket.runs])


def pack_slice(segments: Sequence[Segment], pieces: dict[int, tuple[int, Any]], dtype: str) -> Any:
    """A rank's slice of a bucket, of its pieces: `(start, values)` for each variable."""
    parts = []
    for s in segments:
        if s.variable is None:
            parts.append(ops.zeros((s.size,), dtype))
        else:
            start, values = pieces[s.variable]
            parts.append(ops.cast(values[s.start - start : s.stop - start], dtype))
    return ops.concatenate(parts)


def unpack(segments: Sequence[Segment], flat: Any) -> list[Any]:
    """The parts of a 1-D tensor that lie one after the other."""
    ends = list(itertools.accumulate(s.size for s in segments))
    flat = ops.reshape(flat, (ends[-1],))
    return ops.split(flat, ends[:-1]) if len(ends) > 1 else [flat]


def _part(run: Segment, flat: dict[int, Any], dtype: str) -> Any:
    values = flat.get(run.variable)
    if values is None:
        return ops.zeros((run.size,), dtype)
    if run.size != values.shape[0]:
        values = values[run.start : run.stop]
    return ops.cast(values, dtype)
