"""All that training keeps on this rank: parameters, statistics, and the optimizer's state."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import keras

from revkeras.distribute.building import is_built
from revkeras.distribute.checkpoint import CheckpointError
from revkeras.distribute.model_optimizers import optimizers
from revkeras.distribute.parameters import is_sharded, shard_of
from revkeras.distribute.partition import own_range
from revkeras.distribute.state import Held


def held_by(strategy: Any, written: bool) -> Iterator[Held]:
    """What this rank holds of the state of a strategy's models.

    Seeds are each rank's own, and not among it.

    Args:
        strategy: The strategy.
        written: Whether each element of the state is to be in it once among all ranks, as
            checkpoints have it, and not as often as it is held.

    Raises:
        CheckpointError: if a model has no variables yet, or the strategy no model.
    """
    for model in trained(strategy):
        _check_built(model)
        strategy.prepare(model)
        trained_by = _built_optimizers(strategy, model, written)
        variables = [*model.trainable_variables, *model.non_trainable_variables]
        names = unique([v.path for v in variables])
        if len(strategy.models) > 1:
            names = [f"{model.name}/{name}" for name in names]
        owned = {id(own.variable): own for o in trained_by.values() for own in o.owned().values()}
        trainable = {id(v) for v in model.trainable_variables}
        for name, v in zip(names, variables):
            if v.name != "seed_generator_state":
                has_masters = strategy.size > 1 and id(v) in trainable
                yield from _held(strategy, name, v, owned.get(id(v)), has_masters, written)
        name_of = {id(v): name for name, v in zip(names, variables)}
        for label, optimizer in trained_by.items():
            prefix = f"{label}/" if len(trained_by) > 1 else ""
            paths = [name_of[id(v)] for v in optimizer._trainable_variables]
            for held in optimizer.held(paths):
                yield dataclasses.replace(held, name=prefix + held.name)


def trained(strategy: Any) -> list[keras.Model]:
    """The strategy's models, of which there has to be one."""
    if not strategy.models:
        raise CheckpointError(
            "The strategy trains no model, so there is no state to save or to restore. Expected "
            "a model that was compiled in its scope: `with strategy.scope(): model = "
            "build_model(); model.compile(strategy.optimizer(...), ...)`."
        )
    return strategy.models


def _built_optimizers(strategy: Any, model: keras.Model, written: bool) -> dict[str, Any]:
    """The model's optimizers, by their attributes, each with the variables that it updates."""
    found = optimizers(strategy, model)
    if len(found) == 1:
        for optimizer in found.values():
            if not optimizer.built:
                optimizer.build(model.trainable_variables)
    unbuilt = [name for name, optimizer in found.items() if not optimizer.built]
    if unbuilt and not written:
        raise CheckpointError(
            f"The model '{model.name}' has several optimizers, and which variables its "
            f"{', '.join(f'`{name}`' for name in unbuilt)} will update is not known before the "
            "first step. Expected optimizers that are built after `compile()`, each on its "
            "variables: `model.d_optimizer.build(model.discriminator.trainable_variables)`."
        )
    return {name: optimizer for name, optimizer in found.items() if optimizer.built}


def _check_built(model: keras.Model) -> None:
    if not is_built(model):
        raise CheckpointError(
            f"The model '{model.name}' is not built: its variables would be made by its first "
            "batch, so there are none to save or to restore. Expected a model that knows its input "
            "shape: start it with keras.Input, or call model.build(input_shape) in "
            "strategy.scope()."
        )


def _held(
    strategy: Any, name: str, v: Any, own: Any, has_masters: bool, written: bool
) -> Iterator[Held]:
    shape = tuple(v._shape)
    if is_sharded(v):
        place = own_range(math.prod(shape), strategy.size, strategy.rank)
        yield Held(name, shape, shard_of(v), *place)
    elif not (written and has_masters):
        yield Held(name, shape, v, None, None)
    has_master = own is not None and own.piece is not v
    if has_master and not (is_sharded(v) and written):
        yield Held(name, shape, own.piece, own.start, own.stop)


def unique(paths: list[str]) -> list[str]:
    """The paths, with a number behind those that came before."""
    seen: dict[str, int] = {}
    names = []
    for path in paths:
        seen[path] = seen.get(path, 0) + 1
        names.append(path if seen[path] == 1 else f"{path}#{seen[path]}")
    return names
