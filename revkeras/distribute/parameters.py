"""Parameters of which each rank holds a slice (stage 3), gathered where they are read."""

import contextlib
import math
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import ops

from revkeras._engine import verbs
from revkeras._keras import (
    TakingVariable,
    autocast,
    get_stateless_scope,
    in_symbolic_scope,
    initialize_as,
    raw,
    set_path,
    set_raw,
    stored_dtype,
)
from revkeras.distribute.gathering import gathered, scattered
from revkeras.distribute.partition import own_range, share


class ShardedVariable(TakingVariable):
    """A Keras variable whose value is spread over the ranks.

    It looks whole: `value` and `numpy()` gather it, `assign` keeps this rank's slice
    of what it is given. All ranks have to do so together. Gradients for it are slices.

    Made by `shard`, of a variable that exists; it is the same object then.
    """

    _engine: Any
    _shard: keras.Variable
    _followers: list

    @property
    def value(self) -> Any:
        scope = get_stateless_scope()
        given = scope and scope.get_current_value(self)
        if given is not None:
            return autocast(self, given)
        if in_symbolic_scope():
            return autocast(self, ops.zeros(tuple(self.shape), stored_dtype(self)))
        wire = str(autocast(self, ops.zeros((), stored_dtype(self))).dtype.name)
        (whole,) = gathered(self._engine, [self], [self._shard.value], [wire])
        return whole

    @property
    def handle(self) -> Any:
        return raw(self).handle  # for tapes

    def take(self, value: Any) -> None:
        value = ops.cast(value, stored_dtype(self))
        self._shard.assign(_own_slice(self._engine, self.shape, value))
        for follower, wire in self._followers:
            if (master := follower()) is not None:
                follow(master, value, wire)

    def numpy(self) -> Any:
        return ops.convert_to_numpy(self.value)


def is_sharded(variable: Any) -> bool:
    """Whether each rank holds a slice of the variable alone."""
    return isinstance(variable, ShardedVariable)


def shard_of(variable: ShardedVariable) -> keras.Variable:
    """This rank's slice of a sharded variable, as a variable: 1-D, padded with zeros."""
    return variable._shard


def add_follower(variable: ShardedVariable, master: keras.Variable, wire: str) -> None:
    """Has a master follow the values that are assigned to a variable, eagerly and in graphs.

    Args:
        variable: The variable.
        master: A variable of the same shape, held weakly.
        wire: The dtype in which the master's value is published.
    """
    # Those of an optimizer that another one took the place of are gone.
    others = [follower for follower in variable._followers if follower[0]() is not None]
    variable._followers = [*others, (weakref.ref(master), wire)]


def follow(master: keras.Variable, now: Any, wire: str) -> None:
    """Has a master take its variable's value, except where that is the master's own, rounded."""
    now = ops.cast(now, stored_dtype(master))
    published = ops.cast(ops.cast(master.value, wire), stored_dtype(master))
    master.assign(ops.where(ops.equal(now, published), master.value, now))


def shard(variable: keras.Variable, engine: Any, initialize: Any, value: Any = None) -> None:
    """Leaves this rank's slice of a variable, which from then on is a `ShardedVariable`.

    Args:
        variable: The variable.
        engine: The engine that the ranks communicate by.
        initialize: `initialize(variable, value)` sets what a Keras variable keeps its
            value in.
        value: The whole value; `None` for what the variable has.
    """
    whole = variable.value if value is None else value
    initialize_as(variable, _own_slice(engine, variable.shape, whole), initialize)
    variable._engine = engine
    variable._shard = _view(variable)
    variable._followers = []
    variable.__class__ = ShardedVariable


def unshard(variable: ShardedVariable, initialize: Any) -> None:
    """Gives every rank the whole value again."""
    whole = variable.value
    variable.__class__ = keras.Variable
    set_raw(variable, None)
    del variable._shard, variable._engine, variable._followers
    initialize(variable, whole)


@contextlib.contextmanager
def whole_on_rank_0(variables: Sequence, initialize: Any) -> Iterator[None]:
    """Within it, rank 0 holds the variables' whole values; entered by all ranks together."""
    lent = []
    for v in filter(is_sharded, variables):
        whole, own = v.value, raw(v)  # gathered by all ranks
        if v._engine.rank == 0:
            lent.append((v, own))
            v.__class__ = keras.Variable
            set_raw(v, None)
            initialize(v, whole)
    try:
        yield
    finally:
        for v, own in lent:
            v.__class__ = ShardedVariable
            set_raw(v, own)


def spread_out(engine: Any, variable: ShardedVariable, part: Any) -> Any:
    """This rank's slice in its place among zeros: 1-D, as long as the variable has elements."""
    size = _size(variable)
    start, stop = own_range(size, engine.size, engine.rank)
    return ops.pad(part[: stop - start], [[start, size - stop]])


class Spread:
    """A residence whose values are spread over the ranks, see `_engine/tensorflow/residence.py`.

    Args:
        engine: The engine that the ranks communicate by.
        within: The residence of the slices.
        read_in: By variables' `id`, the dtype that they are read in, where it has fewer
            bits than they have.
    """

    in_place = False

    def __init__(self, engine: Any, within: Any, read_in: dict[int, str]):
        self._engine = engine
        self._within = within
        self.read_in = read_in

    def place(self) -> Any:
        return self._within.place()

    def read(self, variables: Sequence) -> list:
        return self._within.read([v._shard if is_sharded(v) else v for v in variables])

    def fetch(self, owners: Sequence, values: list, gate: list) -> list:
        values = list(self._within.fetch(owners, values, gate))
        chosen = [i for i, owner in enumerate(owners) if is_sharded(owner)]
        if not chosen:
            return values
        shards = verbs.after(gate, [values[i] for i in chosen])
        owners = [owners[i] for i in chosen]
        wires = [self.read_in.get(id(owner), stored_dtype(owner)) for owner in owners]
        for i, whole in zip(chosen, gathered(self._engine, owners, shards, wires)):
            values[i] = whole
        return values

    def release(self, owners: Sequence, gradients: list) -> list:
        gradients = list(gradients)
        chosen = [i for i, owner in enumerate(owners) if is_sharded(owner)]
        if chosen:
            whole = [gradients[i] for i in chosen]
            slices = scattered(self._engine, [owners[i] for i in chosen], whole)
            for i, part in zip(chosen, slices):
                gradients[i] = part
        return self._within.release(owners, gradients)


def _own_slice(engine: Any, shape: tuple, value: Any) -> Any:
    size = math.prod(shape)
    start, stop = own_range(size, engine.size, engine.rank)
    part = ops.reshape(value, (size,))[start:stop]
    return ops.pad(part, [[0, share(size, engine.size) - (stop - start)]])


def _view(variable: keras.Variable) -> keras.Variable:
    view = keras.Variable(
        raw(variable),
        dtype=stored_dtype(variable),
        trainable=variable.trainable,
        name=variable.name,
    )
    set_path(view, variable.path)
    return view


def _size(variable: Any) -> int:
    return math.prod(variable.shape)
