"""Which optimizers train a model: that of Keras's `compile()`, and those in other attributes."""

from collections.abc import Iterator
from typing import Any

import keras

from revkeras._keras import flatten_layers, is_tracking
from revkeras.distribute import sharded_layers
from revkeras.distribute.zero_optimizer import ZeroOptimizer


def in_attributes(model: keras.Model) -> Iterator[tuple[str, keras.optimizers.Optimizer]]:
    """The optimizers in a model's attributes, and in lists and dictionaries there, by name."""
    for name, value in vars(model).items():
        if is_tracking(name):
            continue
        if isinstance(value, (list, tuple, dict)):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            named = {f"{name}[{key!r}]": x for key, x in items}
        else:
            named = {name: value}
        for place, x in named.items():
            if isinstance(x, keras.optimizers.Optimizer):
                yield place, x


def optimizers(strategy: Any, model: keras.Model) -> dict[str, ZeroOptimizer]:
    """The strategy's optimizers that train a model, by the attributes that hold them.

    The one that Keras's `compile()` takes by default counts where there is no other.
    """
    found = {id(x): (name, x) for name, x in in_attributes(model) if isinstance(x, ZeroOptimizer)}
    found = dict(found.values())
    asked = {name: x for name, x in found.items() if x not in strategy.unasked_optimizers}
    return asked or found


def facts(strategy: Any, model: keras.Model) -> dict:
    """What the optimizers of a model have in common on all workers, as JSON values."""
    every = optimizers(strategy, model)
    return {
        f"`{name}`, {fact}" if len(every) > 1 else fact: value
        for name, optimizer in every.items()
        for fact, value in optimizer.facts().items()
    }


def dtypes_of_model_reads(strategy: Any, optimizer: ZeroOptimizer) -> dict[int, str]:
    """By variables' `id`, the 16-bit dtype in which the optimizer's models read them.

    Raises:
        ValueError: if it trains none of the models that were compiled in the scope.
    """
    trained = [
        model
        for model in strategy.models
        if any(x is optimizer for x in optimizers(strategy, model).values())
    ]
    if strategy.size > 1 and not trained:
        raise ValueError(
            "A strategy's optimizer trains a model that was compiled outside of the strategy's "
            "scope, so each worker would train for itself. Expected `with strategy.scope(): "
            f"model.compile(...)`, received optimizer={optimizer.name!r}, which none of the "
            "models compiled there has in an attribute."
        )
    return sharded_layers.dtypes_of_reads(
        layer for model in trained for layer in flatten_layers(model)
    )
