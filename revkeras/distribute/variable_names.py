"""Names that say where something is in a model, whatever a process has built before it.

Keras gives what the user does not name a number among all that the process has made, so the
same model has other names when it is built again. Here numbers count within one layer.
"""

import re
from collections.abc import Sequence
from typing import Any

import keras

from revkeras._keras import (
    inner_layers,
    own_non_trainable_variables,
    own_seed_generators,
    own_trainable_variables,
)

_NUMBER = re.compile(r"_\d+(?=_|$)")


def variables_by_place(model: keras.layers.Layer) -> dict[str, Any]:
    """All variables of a layer or model, by names such as `"encoder/dense_1/kernel"`.

    One that layers share has the name of its first place.
    """
    found: dict[str, Any] = {}
    _collect(model, "", found, set())
    return found


def numbered(names: Sequence[str]) -> list[str]:
    """The names without Keras's numbers, and with their own where one is there again."""
    counts: dict[str, int] = {}
    results = []
    for name in (_NUMBER.sub("", name) for name in names):
        counts[name] = counts.get(name, -1) + 1
        results.append(f"{name}_{counts[name]}" if counts[name] else name)
    return results


def _collect(layer: keras.layers.Layer, prefix: str, found: dict, seen: set[int]) -> None:
    seeds = [generator.state for generator in own_seed_generators(layer)]
    own = [*own_trainable_variables(layer), *own_non_trainable_variables(layer), *seeds]
    inner = inner_layers(layer)
    names = numbered([*(v.name for v in own), *(child.name for child in inner)])
    for item, name in zip([*own, *inner], names, strict=True):
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, keras.layers.Layer):
            _collect(item, f"{prefix}{name}/", found, seen)
        else:
            found[f"{prefix}{name}"] = item
