"""The optimizer that updates this rank's part of the parameters."""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from revkeras._engine import verbs
from revkeras._keras import (
    batch_counter,
    check_known,
    exclude_from_weight_decay,
    index_of,
    optimizer_variables,
    raw,
    set_path,
    set_variable_key,
    stored_dtype,
    variables_to_update,
)
from revkeras.distribute import slots, variable_creation
from revkeras.distribute.clipping import Clipping
from revkeras.distribute.exchange import Exchange, make_groups
from revkeras.distribute.optimizer_state import File, OptimizerState, Owned
from revkeras.distribute.parameters import add_follower, is_sharded, shard_of
from revkeras.distribute.partition import own_range
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


class ZeroOptimizer(keras.optimizers.Optimizer):
    """Has a Keras optimizer update this rank's part of the parameters, and shares the result.

    `ZeroStrategy.optimizer` makes it. The optimizer that it wraps is built on
    pieces of variables, each a Keras variable of its own under the whole one's name, or on whole
    variables that are dealt out, if it may look at more than single elements.

    Args:
        inner: A Keras optimizer.
        strategy: The `ZeroStrategy`.
    """

    def __init__(self, inner: keras.optimizers.Optimizer, strategy: Any):
        check_inner(inner)
        super().__init__(learning_rate=0.0, name=inner.name)
        set_variable_key(self, id)  # the value of a variable that is sharded would be gathered
        self._hidden = _Hidden(inner)
        self.strategy = strategy
        self._engine = strategy.engine
        self._offload = strategy.offload

    # What users and callbacks see is the optimizer inside.

    def wrapped(self) -> keras.optimizers.Optimizer:
        """The optimizer that was given to `ZeroStrategy.optimizer`."""
        return self._hidden.inner

    def scale_dynamically(self) -> None:
        """Scales the loss, as Keras does for a float16 policy, if that is not done already."""
        if not self._hidden.scales:
            inner = self._hidden.inner
            scaled = keras.optimizers.LossScaleOptimizer(inner, name="loss_scale_optimizer")
            self._hidden = _Hidden(scaled)

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

    @property
    def batches(self) -> int:
        """How many batches it has taken; `iterations` counts accumulated ones as one."""
        return int(batch_counter(self._hidden.core))

    def scale_loss(self, loss: Any) -> Any:
        return self._hidden.inner.scale_loss(loss)

    def exclude_from_weight_decay(self, *args: Any, **kwargs: Any) -> None:
        self._hidden.core.exclude_from_weight_decay(*args, **kwargs)

    def get_config(self) -> dict:
        return self._hidden.inner.get_config()

    def facts(self) -> dict:
        """What the optimizers of all workers have in common, as JSON values."""
        core = self._hidden.core
        config = {"class": type(core).__name__, **core.get_config()}
        config.pop("name", None)  # which counts the optimizers that a worker made before
        config["loss scaling"] = self._hidden.scales
        text = json.dumps(config, default=_as_json)
        return {f"the optimizer's {key}": value for key, value in json.loads(text).items()}

    # Building: who updates what.

    def build(self, variables: list) -> None:
        if self.built:
            return
        dtypes = self.strategy.read_in(self)
        variables, inner, core = list(variables), self._hidden.inner, self._hidden.core
        _refuse_overwritten(variables)
        with verbs.eager_scope(), variable_creation.unobserved():
            super().build(variables)
            self._whole = type(core) not in ELEMENTWISE
            with verbs.place(self._offload):
                self._make_pieces(variables, dtypes)
                pieces = self._hidden.pieces
                pairs = [(raw(v), pieces[i]) for i, v in enumerate(variables) if i in pieces]
                exclude_from_weight_decay(core, pairs)
                found = slots.build(inner, core, [*self._hidden.pieces.values()])
        positions = list(self._hidden.pieces)
        found = [dataclasses.replace(slot, owner=positions[slot.owner]) for slot in found]
        owned = {
            i: Owned(variables[i], self._hidden.pieces[i], *self._range(i))
            for i in positions[: self._n]
        }
        self._hidden.state = OptimizerState(core, found, variables, owned, self._engine)
        self._clipping = Clipping(self._engine, core, len(variables))
        if self._engine.size > 1 and self._hidden.scales:
            inner.check_finite = _on_all_ranks(inner.check_finite, self._engine)

    def _make_pieces(self, variables: list, dtypes: dict[int, str]) -> None:
        """What this rank updates, as Keras variables, by their variables' positions.

        `dtypes` has the 16-bit ones in which variables are read, by their `id`.
        """
        engine, hidden = self._engine, self._hidden
        if engine.size == 1:
            hidden.pieces = dict(enumerate(variables))
            self._n = len(variables)
            return
        groups = make_groups(variables, dtypes, engine, self.strategy.bucket_bytes, self._whole)
        segments = {
            group.variables[p.segment.variable]: p.segment for group in groups for p in group.pieces
        }
        hidden.ranges = {i: (s.start, s.stop) for i, s in segments.items()}
        masters = {}
        for i, v in enumerate(variables):
            if is_sharded(v) and not self._whole:
                hidden.pieces[i] = shard_of(v)
                continue
            value = v.value  # which all ranks have to ask for, where it is sharded
            if i in segments:
                piece = self._master(v, value, *hidden.ranges[i])
                if is_sharded(v):
                    add_follower(v, piece, dtypes.get(id(v), stored_dtype(v)))
                hidden.pieces[i] = masters[i] = piece
        self._n = len(hidden.pieces)
        # So that no rank is without a piece: all take the same steps.
        hidden.pieces[len(variables)] = keras.Variable([0.0], dtype="float32", name="nothing")
        hidden.exchange = Exchange(engine, variables, groups, masters)

    def _master(self, variable: Any, value: Any, start: int, stop: int) -> keras.Variable:
        dtype = "float64" if stored_dtype(variable) == "float64" else "float32"
        values = ops.cast(ops.reshape(value, (-1,))[start:stop], dtype)
        if self._whole:
            values = ops.reshape(values, tuple(variable.shape))
        piece = keras.Variable(values, dtype=dtype, name=variable.name)
        set_path(piece, variable.path)
        return piece

    def _range(self, i: int) -> tuple[int, int]:
        """The range of a variable that this rank's piece is."""
        size = math.prod(variables_to_update(self)[i].shape)
        return self._hidden.ranges.get(i, own_range(size, self._engine.size, self._engine.rank))

    # Its state, as if it were whole.

    def held(self, prefix: str, names: dict[int, str]) -> list[Held]:
        """What this rank holds of the optimizer's state.

        Args:
            prefix: What the names of all of it start with.
            names: By the `id` of the model's variables, their names.
        """
        inner, scaling = self._hidden.inner, []
        if self._hidden.scales:
            scaling = [
                Held(f"{prefix}loss_scale/{v.name}", tuple(v.shape), v, None, None)
                for v in (inner.step_counter, inner.dynamic_scale)
            ]
        return [*self._hidden.state.held(prefix, names), *scaling]

    def owned(self) -> dict[int, Owned]:
        """What this rank updates of the model's variables, by position."""
        return self._hidden.state.owned

    def save_own_variables(self, store: Any) -> None:
        self._saved().save_own_variables(store)

    def load_own_variables(self, store: Any) -> None:
        self._saved().load_own_variables(store)

    @property
    def inner_optimizer(self) -> File:
        """What loss scaling wraps, for files."""
        if not (self._hidden.scales and self.built):
            raise AttributeError("This optimizer does not scale losses, or is not built.")
        return File(self._hidden.state, [])

    def _saved(self) -> Any:
        """What stands for it in files; before it is built, it has nothing of pieces."""
        if not self.built:
            return self._hidden.inner
        before = optimizer_variables(self._hidden.inner) if self._hidden.scales else []
        return File(self._hidden.state, list(before))

    # A step.

    def apply(self, grads: Sequence, trainable_variables: Sequence | None = None) -> None:
        if trainable_variables is None:
            trainable_variables = variables_to_update(self)
        variables = list(trainable_variables)
        if not self.built:
            self.build(variables)
        check_known(self, variables)
        pairs = zip(grads, variables, strict=True)
        found = {index_of(self, v): g for g, v in pairs if g is not None}
        if not found:
            raise ValueError("No gradients provided for any variable.")
        if self._engine.size == 1:
            self._update(found)
            return
        if self.strategy.stage == 1:  # gradients are whole until all are there
            found = dict(zip(found, verbs.after([*found.values()], [*found.values()])))
        mine = self._hidden.exchange.reduce(found)
        self._hidden.exchange.follow()
        pieces, ranges = self._hidden.pieces, self._hidden.ranges
        mine |= {i: g for i, g in found.items() if i in pieces and i not in ranges}
        mine = {i: mine[i] for i in sorted(mine)}
        self._update(mine | {len(variables_to_update(self)): ops.zeros((1,), "float32")})
        self._hidden.exchange.publish()
        self._constrain([i for i in found if variables_to_update(self)[i].constraint])

    def _update(self, mine: dict[int, Any]) -> None:
        """Updates this rank's pieces, which the gradients are of."""
        self._clipping.positions = list(mine)
        with verbs.place(self._offload):
            self._hidden.inner.apply([*mine.values()], [self._hidden.pieces[i] for i in mine])

    def _constrain(self, positions: list[int]) -> None:
        """Applies constraints, which may be of whole variables, where those are whole."""
        for i in positions:
            variable = variables_to_update(self)[i]
            value = variable.constraint(variable.value)
            variable.assign(value)
            if i in self._hidden.ranges:
                start, stop = self._hidden.ranges[i]
                piece = self._hidden.pieces[i]
                piece.assign(ops.reshape(ops.reshape(value, (-1,))[start:stop], piece.shape))

    def publish_exactly(self) -> None:
        """Gives every rank all bits of parameters that it had in 16."""
        if self._engine.size == 1:
            return
        self._hidden.exchange.follow()  # what was assigned stays
        if self._hidden.exchange.rounds:
            self._hidden.exchange.publish(exactly=True)

    def finalize_variable_values(self, var_list: list) -> None:
        if self._engine.size == 1:
            self._hidden.inner.finalize_variable_values(var_list)
        elif self._hidden.core.use_ema and self.built:
            self._hidden.core.finalize_variable_values([*self._hidden.pieces.values()])
            self._hidden.exchange.publish(exactly=True)


def _as_json(value: Any) -> Any:
    """What stands for an object, without its address, which differs by process."""
    return value.tolist() if hasattr(value, "tolist") else type(value).__name__


@dataclasses.dataclass
class _Hidden:
    """What Keras and TensorFlow, which track and save attributes, are not to find.

    Attributes:
        inner: The optimizer that updates.
        pieces: What this rank updates, by its variable's position.
        ranges: The ranges of the variables that its pieces are, where those were dealt out.
        exchange: How gradients and parameters travel, when it is built.
        state: Its state, when it is built.
    """

    inner: keras.optimizers.Optimizer
    pieces: dict[int, keras.Variable] = dataclasses.field(default_factory=dict)
    ranges: dict[int, tuple[int, int]] = dataclasses.field(default_factory=dict)
    exchange: Exchange | None = None
    state: OptimizerState | None = None

    @property
    def scales(self) -> bool:
        """Whether the optimizer is another one in loss scaling."""
        return isinstance(self.inner, keras.optimizers.LossScaleOptimizer)

    @property
    def core(self) -> keras.optimizers.Optimizer:
        """The optimizer without its loss scaling."""
        return self.inner.inner_optimizer if self.scales else self.inner


def _on_all_ranks(check_finite: Any, engine: Any) -> Any:
    """All ranks find the gradients finite, or none does."""

    def agreed(grads: list) -> Any:
        finite = ops.cast(check_finite(grads), "int32")
        return ops.cast(engine.all_reduce(finite, op="min"), "bool")

    return agreed


def check_inner(optimizer: Any) -> None:
    """Raises unless it is an optimizer that can be built on pieces."""
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            "Invalid value for argument `inner`: expected a Keras optimizer such as "
            f"keras.optimizers.AdamW(1e-3), received inner={optimizer!r} (of type "
            f"{type(optimizer).__name__})."
        )
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    own, base = type(optimizer.inner_optimizer if scales else optimizer), keras.optimizers.Optimizer
    if any(getattr(own, name) is not getattr(base, name) for name in ("apply", "apply_gradients")):
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
