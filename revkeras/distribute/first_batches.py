"""Whether all workers read the same data: their first batches are compared as they train."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from revkeras.distribute import membership

COUNT = 2


class FirstBatches:
    """Digests of the first batches that a worker reads, before its rows are taken from them.

    Nothing is read for it: whoever reads batches for training notes them here.
    """

    def __init__(self) -> None:
        self._digests: dict[str, str] | None = None  # while it watches

    def watch(self) -> None:
        """Takes note of batches from here on."""
        self._digests = {}

    def note(self, index: Any, tensors: Iterable) -> None:
        """Notes a batch, which is the one of that number since its iterator began."""
        found = self._digests
        if found is not None and index < COUNT and str(index) not in found:
            found[str(index)] = digest(tensors)

    def compare(self, ends: bool = False) -> None:
        """Compares with all workers what they have noted; to be called by all of them.

        Args:
            ends: Whether no further batches are to be compared.

        Raises:
            ValueError: if they differ, on all workers; says which ranks do.
        """
        if self._digests is None:
            return
        everyone = membership.exchange(dict(self._digests))  # another thread may add to it
        known = set.intersection(*map(set, everyone))  # a worker may have read ahead
        if ends or len(known) == COUNT:
            self._digests = None
        for index in sorted(known):
            _refuse_different(index, [digests[index] for digests in everyone])


def digest(tensors: Iterable) -> str:
    """Equal for arrays of the same values, shapes and dtypes, strings among them."""
    found = hashlib.blake2b(digest_size=8)
    for x in map(np.asarray, tensors):
        values = repr(x.tolist()).encode() if x.dtype == object else x.tobytes()
        found.update(f"{x.dtype.name} {x.shape} {len(values)}:".encode())
        found.update(values)
    return found.hexdigest()


def _refuse_different(index: str, digests: list[str]) -> None:
    common = max(digests, key=digests.count)
    others = [rank for rank, found in enumerate(digests) if found != common]
    if others:
        same = [rank for rank, found in enumerate(digests) if found == common]
        raise ValueError(
            "Invalid value for argument `dataset` of `strategy.shard`: expected the same batches "
            f"on all workers, of which each takes its rows; in batch {index}, {_ranks(others)} "
            f"received other values than {_ranks(same)}. Likely causes: a `shuffle` without a "
            "seed inside `interleave` or `flat_map` (call `keras.utils.set_random_seed(7)` before "
            "the dataset is made, or pass `seed=7`), `deterministic=False` in `map`, `interleave` "
            "or the dataset's options (leave it out), or files and arrays that differ. What may "
            "differ, such as random augmentation, belongs behind the sharding: "
            "`strategy.shard(dataset).map(augment)`."
        )


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
