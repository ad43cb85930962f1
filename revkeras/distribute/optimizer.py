"""The optimizer that reduce-scatters gradients, updates slices, and gathers parameters."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from revkeras import backprop
from revkeras.distribute import slots
from revkeras.distribute.clipping import Clipping
from revkeras.distribute.flat import pack, pack_slice, unpack
from revkeras.distribute.optimizer_state import File, OptimizerState, Owned
from revkeras.distribute.parameters import is_sharded, raw, shard_of, spread_out
from revkeras.distribute.partition import (
    Bucket,
    Piece,
    even_buckets,
    own_range,
    pieces,
    whole_buckets,
)
from revkeras.distribute.state import Held

ELEMENTWISE = {
    keras.optimizers.Adadelta,
    keras.optimizers.Adagrad,
    keras.optimizers.Adam,
    keras.optimizers.AdamW,
    keras.optimizers.Adamax,
    keras.optimizers.Ftrl,
    keras.optimizers.Lion,
    keras.optimizers.Nadam,
    keras.optimizers.RMSprop,
    keras.optimizers.SGD,
}


@dataclasses.dataclass(frozen=True)
class Group:
    """Variables whose gradients and values travel in the same buckets.

    Attributes:
        variables: Their positions in the model's list.
        buckets: Of positions in `variables`.
        pieces: What this rank owns of them.
        wire: The dtype in which values are gathered.
    """

    variables: tuple[int, ...]
    buckets: tuple[Bucket, ...]
    pieces: tuple[Piece, ...]
    wire: str


class ZeroOptimizer(keras.optimizers.Optimizer):
    """Updates this rank's part of the parameters, and shares the result.

    Made by `ZeroStrategy.optimizer`.

    Args:
        inner_optimizer: A Keras optimizer, which is built on this rank's part alone.
        strategy: The `ZeroStrategy`.
    """

    def __init__(self, inner_optimizer: keras.optimizers.Optimizer, strategy: Any):
        _refuse_others(inner_optimizer)
        super().__init__(learning_rate=0.0, name=inner_optimizer.name)
        self._hidden = _Hidden(inner_optimizer)
        self.strategy = strategy
        self._engine = strategy.engine
        self._stage = strategy.stage
        self._bucket_bytes = strategy.bucket_bytes
        self._offload = strategy.offload
        self._read_in = {}  # by variable, the 16-bit dtype that it is read in

    # What users and callbacks see is the inner optimizer.

    def wrapped(self) -> keras.optimizers.Optimizer:
        """The optimizer that was given to `ZeroStrategy.optimizer`."""
        return self._hidden.inner

    def scale_dynamically(self) -> None:
        """Scales the loss, as Keras does for a float16 policy, if that is not done already."""
        if self._hidden.core is self._hidden.inner:
            scaled = keras.optimizers.LossScaleOptimizer(
                self._hidden.inner, name="loss_scale_optimizer"
            )
            self._hidden = _Hidden(scaled)

    @property
    def core(self) -> keras.optimizers.Optimizer:
        """The optimizer that updates: the inner one, without its loss scaling."""
        scales = isinstance(self._hidden.inner, keras.optimizers.LossScaleOptimizer)
        return self._hidden.inner.inner_optimizer if scales else self._hidden.inner

    @property
    def variables(self) -> list:
        return self._hidden.inner.variables

    @property
    def learning_rate(self) -> Any:
        return self._hidden.inner.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self._hidden.inner.learning_rate = learning_rate

    @property
    def iterations(self) -> Any:
        return self._hidden.inner.iterations

    def scale_loss(self, loss: Any) -> Any:
        return self._hidden.inner.scale_loss(loss)

    def exclude_from_weight_decay(self, *args: Any, **kwargs: Any) -> None:
        self._hidden.core.exclude_from_weight_decay(*args, **kwargs)

    def get_config(self) -> dict:
        return self._hidden.inner.get_config()

    # Building: who owns what.

    def read_in(self, dtypes: dict[int, str]) -> None:
        """Tells in which 16-bit dtype variables are read, by their `id`, before it is built."""
        self._read_in = dict(dtypes)

    def build(self, variables: list) -> None:
        if self.built:
            return
        variables = list(variables)
        _refuse_overwritten(variables)
        with backprop.eager_scope():
            super().build(variables)
            self._whole = type(self._hidden.core) not in ELEMENTWISE
            self._groups = self._make_groups(variables)
            with backprop.place(self._offload):
                self._make_pieces(variables)
                _exclude_pieces(self._hidden.core, variables, self._pieces)
                inner, core = self._hidden.inner, self._hidden.core
                self._slots = slots.build(inner, core, [*self._pieces.values()])
        self._hidden.state = self._make_state(variables)
        self._clipping = Clipping(self._engine, self._hidden.core, len(variables))
        if self._engine.size > 1:
            self._agree_on_finite()

    def _var_key(self, variable: Any) -> Any:
        return id(variable)  # the value of a parameter that is sharded would be gathered

    def _make_groups(self, variables: list) -> list[Group]:
        by_kind: dict[tuple, list[int]] = {}
        for i, v in enumerate(variables):
            if self._engine.size > 1 and (self._whole or not is_sharded(v)):
                kind = is_sharded(v), v._dtype, self._read_in.get(id(v), v._dtype)
                by_kind.setdefault(kind, []).append(i)
        groups = []
        for (_, _, wire), positions in by_kind.items():
            sizes = [_size(variables[i]) for i in positions]
            cut = whole_buckets if self._whole else even_buckets
            buckets = cut(sizes, self._engine.size, self._bucket_bytes // 4)
            own = pieces(buckets, self._engine.rank)
            groups.append(Group(tuple(positions), tuple(buckets), tuple(own), wire))
        return groups

    def _make_pieces(self, variables: list) -> None:
        """This rank's pieces, as Keras variables, by their variables' positions."""
        grouped = {
            group.variables[p.segment.variable]: p.segment
            for group in self._groups
            for p in group.pieces
        }
        self._ranges = {i: (s.start, s.stop) for i, s in grouped.items()}
        self._pieces: dict[int, keras.Variable] = {}
        for i, v in enumerate(variables):
            if self._engine.size == 1:
                self._pieces[i] = v
            elif is_sharded(v) and not self._whole:
                self._pieces[i] = shard_of(v)
            else:
                value = v.value  # which all ranks have to ask for, where it is sharded
                if i in grouped:
                    self._pieces[i] = self._master(v, value, *self._ranges[i])
        if self._engine.size > 1:
            # So that no rank is without a piece: all take the same steps.
            self._pieces[len(variables)] = keras.Variable([0.0], dtype="float32", name="nothing")

    def _master(self, variable: Any, value: Any, start: int, stop: int) -> keras.Variable:
        dtype = "float64" if variable.dtype == "float64" else "float32"
        values = ops.cast(ops.reshape(value, (-1,))[start:stop], dtype)
        if self._whole:
            values = ops.reshape(values, variable.shape)
        piece = keras.Variable(values, dtype=dtype, name=variable.name)
        piece._path = variable.path
        if is_sharded(variable):
            variable._followers.append(lambda value: piece.assign(ops.cast(value, dtype)))
        return piece

    def _make_state(self, variables: list) -> OptimizerState:
        size, rank = self._engine.size, self._engine.rank
        positions = list(self._pieces)
        found = [dataclasses.replace(slot, owner=positions[slot.owner]) for slot in self._slots]
        owned = {}
        for i, v in enumerate(variables):
            if i in self._pieces:
                whole = own_range(_size(v), size, rank)
                owned[i] = Owned(v, self._pieces[i], *self._ranges.get(i, whole))
        return OptimizerState(self._hidden.core, found, variables, owned, self._engine)

    def _agree_on_finite(self) -> None:
        if self._hidden.core is self._hidden.inner:
            return
        check_finite = self._hidden.inner.check_finite

        def on_all_ranks(grads: list) -> Any:
            finite = ops.cast(check_finite(grads), "int32")
            return ops.cast(self._engine.all_reduce(finite, op="min"), "bool")

        self._hidden.inner.check_finite = on_all_ranks

    # Its state, as if it were whole.

    def held(self, paths: list[str]) -> list[Held]:
        """What this rank holds of the optimizer's state; `paths` name the model's variables."""
        scaling = []
        if self._hidden.core is not self._hidden.inner:
            scaling = [
                Held(f"loss_scale/{v.name}", tuple(v.shape), v, None, None)
                for v in (self._hidden.inner.step_counter, self._hidden.inner.dynamic_scale)
            ]
        return [*self._hidden.state.held(paths), *scaling]

    def owned(self) -> dict[int, Owned]:
        """What this rank updates of the model's variables, by position."""
        return self._hidden.state.owned

    def save_own_variables(self, store: Any) -> None:
        self._file().save_own_variables(store)

    def load_own_variables(self, store: Any) -> None:
        self._file().load_own_variables(store)

    @property
    def inner_optimizer(self) -> File:
        """What loss scaling wraps, for files."""
        if self._hidden.core is self._hidden.inner:
            raise AttributeError("This optimizer does not scale losses.")
        return File(self._hidden.state, [])

    def _file(self) -> File:
        scales = self._hidden.core is not self._hidden.inner
        return File(self._hidden.state, self._hidden.inner._variables if scales else [])

    # A step.

    def apply(self, grads: Sequence, trainable_variables: Sequence | None = None) -> None:
        variables = list(
            self._trainable_variables if trainable_variables is None else trainable_variables
        )
        if not self.built:
            self.build(variables)
        self._check_variables_are_known(variables)
        found = {
            self._get_variable_index(v): g
            for g, v in zip(grads, variables, strict=True)
            if g is not None
        }
        if not found:
            raise ValueError("No gradients provided for any variable.")
        mine = self._reduce(found) if self._engine.size > 1 else found
        with backprop.place(self._offload):
            self._update(mine)
        if self._engine.size > 1:
            self._publish()
            self._constrain([i for i in found if self._trainable_variables[i].constraint])

    def _constrain(self, positions: list[int]) -> None:
        """Applies constraints, which may be of whole variables, where those are whole."""
        for i in positions:
            variable = self._trainable_variables[i]
            value = variable.constraint(variable.value)
            variable.assign(value)
            if i in self._ranges:
                start, stop = self._ranges[i]
                piece = self._pieces[i]
                piece.assign(ops.reshape(ops.reshape(value, (-1,))[start:stop], piece.shape))

    def _update(self, mine: dict[int, Any]) -> None:
        """Updates this rank's pieces, which the gradients are of."""
        self._clipping.positions = list(mine)
        self._hidden.inner.apply([*mine.values()], [self._pieces[i] for i in mine])

    def _reduce(self, grads: dict[int, Any]) -> dict[int, Any]:
        """The mean gradients of this rank's pieces."""
        if self._stage == 1:  # gradients are whole until all are there
            grads = dict(zip(grads, backprop.after([*grads.values()], [*grads.values()])))
        mine = {}
        for group in self._groups:
            mine.update(self._reduce_group(group, grads))
        if not self._whole:
            sharded = {i: g for i, g in grads.items() if is_sharded(self._trainable_variables[i])}
            mine.update(sharded)
        nothing = len(self._trainable_variables)
        return {i: mine[i] for i in sorted(mine)} | {nothing: ops.zeros((1,), "float32")}

    def _reduce_group(self, group: Group, grads: dict[int, Any]) -> dict[int, Any]:
        size, rank = self._engine.size, self._engine.rank
        dtype = "float64" if group.wire == "float64" else "float32"
        flat = {}
        for local, i in enumerate(group.variables):
            if i in grads:
                flat[local] = self._flat_gradient(i, grads[i], dtype)
        slices = []
        for bucket in group.buckets:
            reduced = self._engine.reduce_scatter(pack(bucket, flat, dtype))
            slices.append(unpack(bucket.slices[rank], reduced))
        mine = {}
        for p in group.pieces:
            i = group.variables[p.segment.variable]
            if i not in grads:
                continue
            d = ops.concatenate([slices[b][k] for b, k in p.sources])
            # A gradient that comes as slices is a mean already, and was in one place.
            is_mean = is_sharded(self._trainable_variables[i])
            mine[i] = ops.reshape(d if is_mean else d / size, self._pieces[i].shape)
            if not is_mean:
                self._follow(group, p, i)
        return mine

    def _flat_gradient(self, i: int, gradient: Any, dtype: str) -> Any:
        variable = self._trainable_variables[i]
        flat = ops.cast(ops.reshape(gradient, (-1,)), dtype)
        return spread_out(self._engine, variable, flat) if is_sharded(variable) else flat

    def _follow(self, group: Group, piece: Piece, i: int) -> None:
        """The master takes what was assigned to the variable since the last step."""
        master, variable = self._pieces[i], self._trainable_variables[i]
        start, stop = piece.segment.start, piece.segment.stop
        now = ops.reshape(variable.value, (-1,))[start:stop]
        now = ops.reshape(ops.cast(now, master.dtype), master.shape)
        if group.wire != master.dtype:
            same = ops.equal(ops.cast(now, group.wire), ops.cast(master.value, group.wire))
            now = ops.where(same, master.value, now)
        master.assign(now)

    def publish_exactly(self) -> None:
        """Gives every rank all bits of parameters that it had in 16."""
        if any(group.wire in ("float16", "bfloat16") for group in self._groups):
            self._publish(exactly=True)

    def _publish(self, exactly: bool = False) -> None:
        """Gives every rank the parameters that the others have updated."""
        for group in self._groups:
            variables = [self._trainable_variables[i] for i in group.variables]
            wire = variables[0]._dtype if exactly else group.wire
            parts: dict[int, list] = {}
            own = {}
            for p in group.pieces:
                value = self._pieces[group.variables[p.segment.variable]].value
                own[p.segment.variable] = p.segment.start, ops.reshape(value, (-1,))
            for bucket in group.buckets:
                mine = pack_slice(bucket.slices[self._engine.rank], own, wire)
                gathered = self._engine.all_gather(mine)
                for run, values in zip(bucket.runs, unpack(bucket.runs, gathered)):
                    if run.variable is not None:
                        parts.setdefault(run.variable, []).append((run.start, values))
            for local, values in parts.items():
                variable = variables[local]
                values = [x for _, x in sorted(values, key=lambda pair: pair[0])]
                whole = values[0] if len(values) == 1 else ops.concatenate(values)
                variable.assign(ops.reshape(ops.cast(whole, variable.dtype), variable.shape))

    def finalize_variable_values(self, var_list: list) -> None:
        if self._engine.size == 1:
            self._hidden.inner.finalize_variable_values(var_list)
        elif self._hidden.core.use_ema and self.built:
            self._hidden.core.finalize_variable_values([*self._pieces.values()])
            self._publish(exactly=True)


@dataclasses.dataclass
class _Hidden:
    """Keeps an optimizer from Keras, which would save it beside what holds it.

    Attributes:
        inner: The optimizer.
        state: Its state, when it is built.
    """

    inner: keras.optimizers.Optimizer
    state: OptimizerState | None = None

    @property
    def core(self) -> keras.optimizers.Optimizer:
        """What updates: the optimizer, without its loss scaling."""
        scales = isinstance(self.inner, keras.optimizers.LossScaleOptimizer)
        return self.inner.inner_optimizer if scales else self.inner


def _size(variable: Any) -> int:
    size = 1
    for n in variable.shape:
        size *= int(n)
    return size


def _exclude_pieces(core: Any, variables: list, owned: dict[int, Any]) -> None:
    """Pieces of variables that are excluded from weight decay are excluded too."""
    excluded = getattr(core, "_exclude_from_weight_decay", None)
    if excluded:
        keys = {
            core._var_key(owned[i])
            for i, v in enumerate(variables)
            if i in owned and core._var_key(raw(v)) in excluded
        }
        core._exclude_from_weight_decay = excluded | keys


def _refuse_others(optimizer: Any) -> None:
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            "Invalid value for argument `inner`: expected a Keras optimizer such as "
            f"keras.optimizers.AdamW(1e-3), received inner={optimizer!r} (of type "
            f"{type(optimizer).__name__})."
        )
    core = optimizer
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        core = optimizer.inner_optimizer
    own, base = type(core), keras.optimizers.Optimizer
    if isinstance(core, ZeroOptimizer) or any(
        getattr(own, name) is not getattr(base, name) for name in ("apply", "apply_gradients")
    ):
        raise ValueError(
            "Invalid value for argument `inner`: expected an optimizer that leaves `apply` to "
            f"Keras, such as SGD, AdamW or Muon, received a {own.__name__}."
        )


def _refuse_overwritten(variables: list) -> None:
    found = [v.path for v in variables if getattr(v, "overwrite_with_gradient", False)]
    if found:
        raise ValueError(
            "Sharded training cannot train variables that are overwritten with their gradients, "
            f"such as those of float8 layers: {found}. Use bfloat16."
        )
