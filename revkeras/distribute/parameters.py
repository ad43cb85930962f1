"""Parameters of which each rank holds a slice (stage 3), gathered where they are read."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from revkeras import backprop
from revkeras.distribute.partition import own_range, share


class ShardedVariable(keras.Variable):
    """A Keras variable whose value is spread over the ranks.

    It looks whole: `value` and `numpy()` gather it, `assign` keeps this rank's slice
    of what it is given. All ranks have to do so together. Gradients for it are slices.

    Made by `shard`, of a variable that exists; it is the same object then.
    """

    @property
    def value(self) -> Any:
        scope = keras.src.backend.common.stateless_scope.get_stateless_scope()
        given = scope and scope.get_current_value(self)
        if given is not None:
            return self._maybe_autocast(given)
        if keras.src.backend.common.symbolic_scope.in_symbolic_scope():
            return self._maybe_autocast(ops.zeros(self._shape, self._dtype))
        wire = str(self._maybe_autocast(ops.zeros((), self._dtype)).dtype.name)
        (whole,) = gathered(self._engine, [self], [self._shard.value], [wire])
        return whole

    @property
    def handle(self) -> Any:
        return self._value.handle  # for tapes

    def _direct_assign(self, value: Any) -> None:
        value = ops.cast(value, self._dtype)
        self._shard.assign(_own_slice(self._engine, value))
        if backprop.is_eager():
            for follower in self._followers:
                if (master := follower()) is not None:
                    master.assign(ops.cast(value, master.dtype))

    def numpy(self) -> Any:
        return ops.convert_to_numpy(self.value)


def is_sharded(variable: Any) -> bool:
    """Whether each rank holds a slice of the variable alone."""
    return isinstance(variable, ShardedVariable)


def shard_of(variable: ShardedVariable) -> keras.Variable:
    """This rank's slice of a sharded variable, as a variable: 1-D, padded with zeros."""
    return variable._shard


def raw(variable: Any) -> Any:
    """What a Keras variable keeps its value in on this rank; no rank needs to be asked."""
    return variable._value


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
    variable._value = None
    initialize(variable, _own_slice(engine, whole))
    variable._engine = engine
    variable._shard = _view(variable)
    variable._followers = []  # weak references to what takes on values assigned outside of graphs
    variable.__class__ = ShardedVariable


def unshard(variable: ShardedVariable, initialize: Any) -> None:
    """Gives every rank the whole value again."""
    whole = variable.value
    variable.__class__ = keras.Variable
    variable._value = None
    del variable._shard, variable._engine, variable._followers
    initialize(variable, whole)


def gathered(engine: Any, variables: Sequence, shards: list, wires: Sequence[str]) -> list:
    """The whole values of sharded variables, by one collective for each dtype.

    Differentiable: the gradients of the shards are those of the whole values, averaged over
    the ranks and cut.

    Args:
        engine: The engine that the ranks communicate by.
        variables: The variables.
        shards: Their slices on this rank, as tensors.
        wires: The dtypes in which they are gathered and returned.
    """

    def run(*shards: Any) -> tuple[list, Callable, list]:
        whole = gather(engine, variables, list(shards), wires)
        return whole, lambda _, *gradients: scattered(engine, variables, list(gradients)), []

    return backprop.with_gradient(run, *shards)


def gather(engine: Any, variables: Sequence, shards: list, wires: Sequence[str]) -> list:
    """`gathered`, not differentiable."""
    whole: list = [None] * len(variables)
    for wire in dict.fromkeys(wires):
        chosen = [i for i, w in enumerate(wires) if w == wire]
        shapes = tuple(tuple(variables[i]._shape) for i in chosen)
        join = backprop.shared(lambda *parts, wire=wire: _joined(parts, wire), "join", wire, shapes)
        cut = backprop.shared(functools.partial(_whole, shapes, engine.size), "cut", wire, shapes)
        parts = cut(engine.all_gather(join(*(shards[i] for i in chosen))))
        for i, value in zip(chosen, parts):
            whole[i] = value
    return whole


def scattered(engine: Any, variables: Sequence, gradients: list) -> list:
    """This rank's slices of the mean of whole gradients, by one collective for each dtype.

    `None` where there is no gradient, which is so on all ranks.
    """
    slices: list = [None] * len(gradients)
    there = [i for i, g in enumerate(gradients) if g is not None]
    for dtype in dict.fromkeys(variables[i]._dtype for i in there):
        chosen = [i for i in there if variables[i]._dtype == dtype]
        shapes = tuple(tuple(variables[i]._shape) for i in chosen)
        key = dtype, shapes
        lay = backprop.shared(functools.partial(_laid_out, engine.size, dtype), "lay", *key)
        take = backprop.shared(functools.partial(_means, shapes, engine.size, dtype), "take", *key)
        parts = take(engine.reduce_scatter(lay(*(gradients[i] for i in chosen))))
        for i, part in zip(chosen, parts):
            slices[i] = part
    return slices


def spread_out(engine: Any, variable: ShardedVariable, part: Any) -> Any:
    """This rank's slice in its place among zeros: 1-D, as long as the variable has elements."""
    size = _size(variable)
    start, stop = own_range(size, engine.size, engine.rank)
    return ops.pad(part[: stop - start], [[start, size - stop]])


class Spread:
    """A residence whose values are spread over the ranks, see `backprop/tensorflow/residence.py`.

    Args:
        engine: The engine that the ranks communicate by.
        within: The residence of the slices.
        read_in: By variables' `id`, the dtype that they are read in, where it has fewer
            bits than they have.
    """

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
        shards = backprop.after(gate, [values[i] for i in chosen])
        owners = [owners[i] for i in chosen]
        wires = [self.read_in.get(id(owner), owner._dtype) for owner in owners]
        for i, whole in zip(chosen, gather(self._engine, owners, shards, wires)):
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


def _own_slice(engine: Any, value: Any) -> Any:
    flat = ops.reshape(value, (-1,))
    size = int(flat.shape[0])
    start, stop = own_range(size, engine.size, engine.rank)
    return ops.pad(flat[start:stop], [[0, share(size, engine.size) - (stop - start)]])


def _view(variable: keras.Variable) -> keras.Variable:
    view = keras.Variable(
        variable._value, dtype=variable._dtype, trainable=variable.trainable, name=variable.name
    )
    view._path = variable.path
    return view


def _joined(parts: Sequence, dtype: str) -> Any:
    return ops.concatenate([ops.cast(part, dtype) for part in parts])


def _whole(shapes: Sequence[tuple], n_ranks: int, flat: Any) -> list:
    """Whole values, of all ranks' slices of them."""
    sizes = [math.prod(shape) for shape in shapes]
    steps = [share(size, n_ranks) for size in sizes]
    columns = _columns(ops.reshape(flat, (n_ranks, sum(steps))), steps)
    flats = [ops.reshape(c, (-1,))[:size] for c, size in zip(columns, sizes)]
    return [ops.reshape(flat, shape) for flat, shape in zip(flats, shapes)]


def _laid_out(n_ranks: int, dtype: str, *gradients: Any) -> Any:
    """Whole gradients as one flat tensor, a row of slices for each rank."""
    rows = []
    for gradient in gradients:
        flat = ops.cast(ops.reshape(gradient, (-1,)), _wide(dtype))
        step = share(int(flat.shape[0]), n_ranks)
        padded = ops.pad(flat, [[0, step * n_ranks - int(flat.shape[0])]])
        rows.append(ops.reshape(padded, (n_ranks, step)))
    return ops.reshape(ops.concatenate(rows, axis=1), (-1,))


def _means(shapes: Sequence[tuple], n_ranks: int, dtype: str, row: Any) -> list:
    """A rank's slices of mean gradients, of the sums in its row."""
    steps = [share(math.prod(shape), n_ranks) for shape in shapes]
    parts = _columns(ops.reshape(row, (1, sum(steps))), steps)
    return [ops.cast(ops.reshape(part, (-1,)) / n_ranks, dtype) for part in parts]


def _columns(rows: Any, steps: list[int]) -> list:
    ends = list(itertools.accumulate(steps))[:-1]
    return ops.split(rows, ends, axis=1) if ends else [rows]


def _wide(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"


def _size(variable: Any) -> int:
    return math.prod(variable._shape)
