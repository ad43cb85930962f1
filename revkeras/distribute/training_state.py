"""All that training keeps on this rank: parameters, statistics, and the optimizer's state."""

import math
from collections.abc import Iterator
from typing import Any

import keras

from revkeras.distribute.building import has_variables
from revkeras.distribute.model_optimizers import optimizers
from revkeras.distribute.parameters import is_sharded, shard_of
from revkeras.distribute.partition import own_range
from revkeras.distribute.sharded_checkpoint import SEEDS, WEIGHTS, CheckpointError
from revkeras.distribute.state import Held
from revkeras.distribute.variable_names import numbered, variables_by_place


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
    for model, prefix in by_place(strategy).items():
        _check_built(model)
        strategy.prepare(model)
        trained_by = _built_optimizers(strategy, model, written)
        places = variables_by_place(model)
        owned = {id(own.variable): own for o in trained_by.values() for own in o.owned().values()}
        trainable = {id(v) for v in model.trainable_variables}
        for place, v in places.items():
            if not is_seed(v):
                has_masters = strategy.size > 1 and id(v) in trainable
                name = f"{WEIGHTS}{prefix}{place}"
                yield from _held(strategy, name, v, owned.get(id(v)), has_masters, written)
        names = {id(v): place for place, v in places.items()}
        for label, optimizer in trained_by.items():
            label = f"{label}/" if len(trained_by) > 1 else ""
            yield from optimizer.held(f"optimizer/{prefix}{label}", names)


def by_place(strategy: Any) -> dict[keras.Model, str]:
    """What the names of each model's variables start with."""
    models = trained(strategy)
    if len(models) == 1:
        return {models[0]: ""}
    names = numbered([model.name for model in models])
    return {model: f"{name}/" for model, name in zip(models, names, strict=True)}


def seeds(strategy: Any) -> dict[str, keras.Variable]:
    """The random generators' states, of which each rank has its own, by names."""
    return {
        f"{SEEDS}{prefix}{place}": v
        for model, prefix in by_place(strategy).items()
        for place, v in variables_by_place(model).items()
        if is_seed(v)
    }


def is_seed(variable: keras.Variable) -> bool:
    """Whether it is the state of a random generator."""
    return variable.name == "seed_generator_state"


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
    if not has_variables(model):
        raise CheckpointError(
            f"The model '{model.name}' is not built: its variables would be made by its first "
            "batch, so there are none to save or to restore. Expected a model that knows its input "
            "shape: start it with keras.Input, or call model.build(input_shape) in "
            "strategy.scope()."
        )


def _held(
    strategy: Any, name: str, v: Any, own: Any, has_masters: bool, written: bool
) -> Iterator[Held]:
    shape = tuple(v.shape)
    if is_sharded(v):
        place = own_range(math.prod(shape), strategy.size, strategy.rank)
        yield Held(name, shape, shard_of(v), *place)
    elif not (written and has_masters):
        yield Held(name, shape, v, None, None)
    has_master = own is not None and own.piece is not v
    if has_master and not (is_sharded(v) and written):
        yield Held(name, shape, own.piece, own.start, own.stop)
