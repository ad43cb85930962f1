"""Run in every worker: reads what other numbers of workers wrote, then writes as this one."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from revkeras.distribute import engines, membership
from revkeras.distribute import sharded_checkpoint as checkpoint
from revkeras.distribute.partition import StatePiece
from revkeras.distribute.sharded_checkpoint import CheckpointError

directory = Path(sys.argv[1])
engine = engines.choose()
place = {"rank": engine.rank, "size": engine.size}

TENSORS = {f"x{n}": np.random.default_rng(n).standard_normal(10 + 7 * n) for n in range(5)}


def cut(size, rank):
    return [size * rank // engine.size, size * (rank + 1) // engine.size]


def pieces(scale):
    return [
        StatePiece(
            name, x.shape, "float64", start, stop, lambda x=x, a=start, b=stop: scale * x[a:b]
        )
        for name, x in TENSORS.items()
        for start, stop in [cut(x.size, engine.rank)]
    ]


def check(found, scale):
    for name, x in TENSORS.items():
        start, stop = cut(x.size, engine.size - 1 - engine.rank)
        np.testing.assert_array_equal(found.read_range(name, start, stop), scale * x[start:stop])


found = checkpoint.newest(directory, **place)
first = 1 if found is None else found.step + 1
if found is not None:
    assert first % 2 == 1
    check(found, found.step)
for step in first, first + 1, first + 2:
    local = {"rank": np.int64(engine.rank)}
    checkpoint.write(directory, pieces(step), step=step, local=local, **place)
    found = checkpoint.newest(directory, **place)
    assert int(found.local(engine.rank)["rank"]) == engine.rank
    check(found, step)

# Another rank than those that check it may find the damage; all pass it over.
membership.exchange(None)
if engine.rank == 0:
    damaged = sorted(directory.glob(f"step-{step:08d}/*.bin"))[-1]
    damaged.write_bytes(b"\0" + damaged.read_bytes()[1:])
membership.exchange(None)
with warnings.catch_warnings(record=True):
    warnings.simplefilter("always")
    check(checkpoint.newest(directory, **place), first + 1)

if engine.size > 1:
    elsewhere = directory / str(engine.rank)  # as on machines that share no disk
    with pytest.raises(CheckpointError, match="rank 1: .* file system that all workers share"):
        checkpoint.write(elsewhere, pieces(1), step=99, **place)
engine.close()
