"""Gradients to their owners, and updated parameters back, by flat buckets."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from revkeras._keras import stored_dtype
from revkeras.distribute.flat import pack, pack_slice, unpack
from revkeras.distribute.parameters import follow, is_sharded, spread_out
from revkeras.distribute.partition import Bucket, Piece, even_buckets, pieces, whole_buckets

_GRADIENT_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Group:
    """Variables whose gradients and values travel in the same buckets.

    Attributes:
        variables: Their positions in the model's list.
        buckets: Of positions in `variables`.
        pieces: What this rank owns of them.
        dtype: The dtype of the variables.
        wire: The dtype in which values are gathered: what they are read in.
    """

    variables: tuple[int, ...]
    buckets: tuple[Bucket, ...]
    pieces: tuple[Piece, ...]
    dtype: str
    wire: str

    @property
    def wide(self) -> str:
        """The dtype of gradients on their way, and of masters."""
        return "float64" if self.dtype == "float64" else "float32"


def make_groups(
    variables: Sequence, read_in: dict[int, str], engine: Any, bucket_bytes: int, whole: bool
) -> list[Group]:
    """The groups of the variables that are exchanged in buckets.

    Those that are sharded already are so only where the optimizer wants whole variables.

    Args:
        variables: The model's variables.
        read_in: By variables' `id`, the dtype that they are read in, if it has fewer bits.
        engine: The engine that the ranks communicate by.
        bucket_bytes: Integer, how large a bucket of gradients is. In bytes.
        whole: Whether variables have one owner each.
    """
    by_kind: dict[tuple, list[int]] = {}
    for i, v in enumerate(variables):
        if whole or not is_sharded(v):
            kind = is_sharded(v), stored_dtype(v), read_in.get(id(v), stored_dtype(v))
            by_kind.setdefault(kind, []).append(i)
    groups = []
    for (_, dtype, wire), positions in by_kind.items():
        sizes = [math.prod(variables[i].shape) for i in positions]
        cut = whole_buckets if whole else even_buckets
        buckets = cut(sizes, engine.size, bucket_bytes // _GRADIENT_BYTES)
        own = pieces(buckets, engine.rank)
        groups.append(Group(tuple(positions), tuple(buckets), tuple(own), dtype, wire))
    return groups


class Exchange:
    """Reduces gradients to the ranks' pieces, and publishes the pieces' values.

    Args:
        engine: The engine that the ranks communicate by.
        variables: The model's variables.
        groups: Those that are exchanged in buckets.
        masters: This rank's pieces of them, as Keras variables, by position.
    """

    def __init__(
        self, engine: Any, variables: list, groups: list[Group], masters: dict[int, keras.Variable]
    ):
        self._engine = engine
        self._variables = variables
        self._groups = groups
        self._masters = masters

    def reduce(self, grads: dict[int, Any]) -> dict[int, Any]:
        """The mean gradients of this rank's pieces, of gradients by position.

        Each bucket goes as soon as its gradients are there, those of the last variables first.
        """
        mine = {}
        for group in self._groups:
            flat = {
                local: self._flat_gradient(i, grads[i], group.wide)
                for local, i in enumerate(group.variables)
                if i in grads
            }
            slices = []
            for bucket in group.buckets:
                reduced = self._engine.reduce_scatter(pack(bucket, flat, group.wide))
                slices.append(unpack(bucket.slices[self._engine.rank], reduced))
            for piece in group.pieces:
                i = group.variables[piece.segment.variable]
                if i in grads:
                    parts = [slices[b][k] for b, k in piece.sources]
                    d = ops.reshape(ops.concatenate(parts), self._masters[i].shape)
                    # Of a sharded variable, each element was one rank's alone, and a mean.
                    mine[i] = d if is_sharded(self._variables[i]) else d / self._engine.size
        return mine

    def follow(self) -> None:
        """The masters take what was assigned to their variables since the last step.

        Those of sharded variables follow them at once.
        """
        for group in self._groups:
            for piece in group.pieces:
                i = group.variables[piece.segment.variable]
                if not is_sharded(self._variables[i]):
                    self._follow(group, piece, self._masters[i], self._variables[i])

    def _follow(self, group: Group, piece: Piece, master: Any, variable: Any) -> None:
        now = ops.reshape(variable.value, (-1,))[piece.segment.start : piece.segment.stop]
        follow(master, ops.reshape(now, master.shape), group.wire)

    @property
    def rounds(self) -> bool:
        """Whether variables are published in fewer bits than they have."""
        return any(group.wire != group.dtype for group in self._groups)

    def publish(self, exactly: bool = False) -> None:
        """Gives every rank the values of all pieces; in all their bits, if `exactly`."""
        for group in self._groups:
            wire = group.dtype if exactly else group.wire
            own = {}
            for piece in group.pieces:
                value = self._masters[group.variables[piece.segment.variable]].value
                own[piece.segment.variable] = piece.segment.start, ops.reshape(value, (-1,))
            parts: dict[int, list] = {}
            for bucket in group.buckets:
                mine = pack_slice(bucket.slices[self._engine.rank], own, wire)
                gathered = unpack(bucket.runs, self._engine.all_gather(mine))
                for run, values in zip(bucket.runs, gathered):
                    if run.variable is not None:
                        parts.setdefault(run.variable, []).append((run.start, values))
            for local, found in parts.items():
                variable = self._variables[group.variables[local]]
                values = [x for _, x in sorted(found, key=lambda pair: pair[0])]
                whole = values[0] if len(values) == 1 else ops.concatenate(values)
                whole = ops.cast(whole, stored_dtype(variable))
                variable.assign(ops.reshape(whole, tuple(variable.shape)))

    def _flat_gradient(self, i: int, gradient: Any, dtype: str) -> Any:
        variable = self._variables[i]
        if is_sharded(variable):
            return spread_out(self._engine, variable, ops.cast(gradient, dtype))
        # A gradient's own shape may be known only when it runs.
        return ops.cast(ops.reshape(gradient, (math.prod(variable.shape),)), dtype)
