"""Which layers' parameters stay sharded (stage 3), and how those layers come by them."""

from collections.abc import Iterable, Iterator
from typing import Any

import keras

from revkeras._engine import verbs
from revkeras._keras import (
    get_stateless_scope,
    has_training_argument,
    in_symbolic_scope,
    inner_layers,
    is_autocast,
    own_non_trainable_variables,
    own_trainable_variables,
    stored_dtype,
)
from revkeras._stack.reversible_sequential import ReversibleSequential
from revkeras.checkpoint import Checkpoint, call_checkpointed
from revkeras.distribute.parameters import Spread, is_sharded, unshard


def dtypes_of_reads(layers: Iterable[keras.layers.Layer]) -> dict[int, str]:
    """By variables' `id`, the 16-bit dtype in which their layers read them, if all do."""
    found: dict[int, set[str]] = {}
    for layer in layers:
        reads = layer.compute_dtype if layer.autocast else None
        for v in own_trainable_variables(layer):
            is_plain = v.regularizer is None and v.constraint is None
            rounds = reads in ("float16", "bfloat16") and is_autocast(v) and is_plain
            found.setdefault(id(v), set()).add(reads if rounds else stored_dtype(v))
    return {key: dtypes.pop() for key, dtypes in found.items() if len(dtypes) == 1}


def arrange(
    model: keras.Model, engine: Any, dtypes: dict[int, str], shard_bytes: int, initialize: Any
) -> None:
    """Gives the layers what they fetch their parameters by; small ones get theirs whole.

    Args:
        model: A built model whose variables are sharded.
        engine: The engine that the ranks communicate by.
        dtypes: What `dtypes_of_reads` found.
        shard_bytes: Integer, from how many bytes on a layer's parameters stay sharded.
        initialize: Sets what a Keras variable keeps its value in.
    """
    kept = set()
    for unit in units(model):
        own = [v for v in unit.variables if is_sharded(v)]
        if not own:
            continue
        fetches = isinstance(unit, (ReversibleSequential, Checkpoint))
        residence = getattr(unit if fetches else unit.call, "residence", None)
        if isinstance(residence, Spread):  # the model was compiled before, or shares the layer
            residence.read_in = dtypes
        elif fetches:
            unit.residence = Spread(engine, residence, dtypes)
        elif sum(_bytes(v) for v in own) >= shard_bytes:
            _checkpoint(unit, Spread(engine, verbs.residence(None), dtypes))
        else:
            continue
        kept.update(id(v) for v in own)
    for v in model.variables:
        if is_sharded(v) and id(v) not in kept:
            unshard(v, initialize)


def units(layer: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """The layers that fetch their parameters at once: the outermost that have some themselves."""
    is_container = isinstance(layer, keras.Model)
    inner = inner_layers(layer)
    owns = bool(own_trainable_variables(layer) or own_non_trainable_variables(layer))
    repeats = isinstance(layer, (keras.layers.RNN, keras.layers.Wrapper))
    whole = isinstance(layer, (ReversibleSequential, Checkpoint)) or repeats
    if whole or not inner or (owns and not is_container):
        yield layer
        return
    for child in inner:
        yield from units(child)


def _checkpoint(layer: keras.layers.Layer, residence: Spread) -> None:
    """Has the layer fetch its parameters for each call, and once more for the gradient."""
    call, has_training = layer.call, has_training_argument(layer)

    def fetching(*args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        if _is_given(layer):
            own = {"training": training} if has_training else {}
            return call(*args, **own, **kwargs)
        return call_checkpointed(layer, residence, layer, training, args, kwargs)

    fetching.residence = residence
    layer.call = fetching


def _is_given(layer: keras.layers.Layer) -> bool:
    """Whether the layer's values are given by a scope, or nothing is computed at all."""
    if in_symbolic_scope():
        return True
    scope = get_stateless_scope()
    return scope is not None and any(
        scope.get_current_value(v) is not None for v in layer.variables
    )


def _bytes(variable: Any) -> int:
    return variable._shard.value.shape[0] * variable._engine.size * variable._shard.value.dtype.size
