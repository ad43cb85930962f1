"""Layers that several blocks hold stay one layer in a stack's config, and in files.

Keras gives an object that it serializes twice a `shared_object_id`, and makes one object of all
configs that have the same. The first of them gets it only when there is a second, though, and by
then nested configs have been copied. Keras has a map of what it has serialized: where a layer is in
it from the start, every config of the layer gets the id.
"""

import collections
import contextlib
import contextvars
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras

from revkeras._keras import (
    LOADED_OBJECTS,
    SERIALIZED_OBJECTS,
    calls_in_graphs,
    flatten_layers,
    get_global_attribute,
    in_safe_mode,
    inner_layers,
    set_global_attribute,
)

_ID = "shared_object_id"
_GRAPH = {"layers", "input_layers", "output_layers"}  # in the config of a functional model

KEY = "shared_layers"  # of the ids in the config of a stack

_OR = "Or save weights alone, by the model's `save_weights()`, and build the model in code."

# What the outermost stack has serialized, where no file is made.
_own = contextvars.ContextVar("own", default=None)


def serialize_layers(layers: Sequence[keras.layers.Layer], owner: str) -> tuple[list[dict], list]:
    """The configs of layers. Those of one layer, wherever they are, have the same id.

    Args:
        layers: The layers of a stack, each once.
        owner: What errors call the stack.

    Returns:
        `(configs, ids)`: the ids are those that mean a layer in these configs alone. While a
        file is made there are none, since Keras's own mean the same in all of it.

    Raises:
        ValueError: if two layers share a third one that the config of one of them leaves out, or
            one layer holds functional models that share one.
    """
    serialized = get_global_attribute(SERIALIZED_OBJECTS)
    # While a file is read, configs are made to copy layers, and a copy is no file's layer.
    makes_file = serialized is not None and in_safe_mode() is None
    if makes_file or (serialized is not None and serialized is _own.get()):
        return _serialize(layers, owner, serialized), []
    serialized = {}
    token = _own.set(serialized)
    try:
        with _as_keras_attribute(SERIALIZED_OBJECTS, serialized):
            configs = _serialize(layers, owner, serialized)
    finally:
        _own.reset(token)
    held = {id(inner) for layer in layers for inner in flatten_layers(layer)}
    counts = collections.Counter(i for i in _ids(configs) if i in held)
    numbers = {i: number for number, i in enumerate(i for i, n in counts.items() if n > 1)}
    return _renumbered(configs, numbers), list(numbers.values())


def deserialize_layers(
    configs: Sequence[dict], ids: Sequence, custom_objects: dict | None = None
) -> list[keras.layers.Layer]:
    """The layers of `(configs, ids)`, as `serialize_layers` returns them."""
    around = get_global_attribute(LOADED_OBJECTS)
    made = {i: x for i, x in (around or {}).items() if i not in ids}
    layers = []
    with _as_keras_attribute(LOADED_OBJECTS, made):
        for config in configs:
            config = _after_earlier_calls(config, made)
            layers.append(keras.saving.deserialize_keras_object(config, custom_objects))
    if around is not None:
        around.update({i: x for i, x in made.items() if i not in ids})
    return layers


@contextlib.contextmanager
def _as_keras_attribute(name: str, value: Any) -> Iterator[None]:
    """Keras keeps them for each thread."""
    before = get_global_attribute(name)
    set_global_attribute(name, value)
    try:
        yield
    finally:
        set_global_attribute(name, before)


def _serialize(
    layers: Sequence[keras.layers.Layer], owner: str, serialized: dict[int, dict]
) -> list[dict]:
    holders = collections.defaultdict(list)  # of each layer, by its `id`
    for index, layer in enumerate(layers):
        for inner in flatten_layers(layer):
            holders[id(inner)].append(index)
            serialized.setdefault(id(inner), {})  # now even the first config gets an id
    shared = {i for i, found in holders.items() if len(found) > 1}
    configs = [keras.saving.serialize_keras_object(layer) for layer in layers]
    for index, (layer, config) in enumerate(zip(layers, configs, strict=True)):
        _refuse_shared_by_graphs(layer, owner, config)
        lost = _left_out([layer], shared, set(_ids(config)), set())
        if lost is not None:
            other = next(i for i in holders[id(lost)] if i != index)
            raise ValueError(
                f"{owner} has no config: {_title(layer)} and {_title(layers[other])} share the "
                f"layer {_title(lost)}, which the config of {_title(layer)} leaves out, so each of "
                "them would be loaded with a layer of its own. In its `get_config()`, add the "
                "layer as `keras.saving.serialize_keras_object(layer)`, and give it back to the "
                f"constructor in `from_config()`, by `keras.saving.deserialize_keras_object`. {_OR}"
            )
    return configs


def _left_out(
    layers: Sequence[keras.layers.Layer], shared: set[int], serialized: set[int], seen: set[int]
) -> keras.layers.Layer | None:
    """A shared layer among these and all in them that configs leave out, if there is any.

    What is in a layer that is made but once is made once too.
    """
    for layer in layers:
        if id(layer) in seen or (id(layer) in shared and id(layer) in serialized):
            continue
        seen.add(id(layer))
        inner = inner_layers(layer)
        lost = layer if id(layer) in shared else _left_out(inner, shared, serialized, seen)
        if lost is not None:
            return lost
    return None


def _refuse_shared_by_graphs(layer: keras.layers.Layer, owner: str, config: dict) -> None:
    """Raises if a functional model in a layer's config shares a layer with another model there.

    How often that layer had been called before would be known only while they are made again.
    """
    models = list({i: found for i, *found in _models(config)}.values())
    for (model, in_stack), (other, _) in itertools.permutations(models, 2):
        if not in_stack and model.keys() >= _GRAPH:
            names = {x.get(_ID): x["name"] for x in model["layers"]}
            both = [names[i] for x in other["layers"] if (i := x.get(_ID)) in names]
            if both:
                raise ValueError(
                    f"{owner} has no config: in its block {_title(layer)}, the models "
                    f"'{model['name']}' and '{other['name']}' share the layer '{both[0]}', and "
                    "Keras does not load a functional model that does. Make it a subclassed layer "
                    f"that holds the shared one. {_OR}"
                )


def _models(config: Any, in_stack: bool = False) -> Iterator[tuple[int, dict, bool]]:
    """The id and config of each model in a config, and whether it is in a stack there.

    That one looks after its own.
    """
    own = config.get("config") if isinstance(config, dict) else None
    if isinstance(own, dict) and "layers" in own:
        in_stack = in_stack or KEY in own
        if KEY not in own and all(isinstance(x, dict) for x in own["layers"]):
            yield config[_ID], own, in_stack
    for part in _parts(config):
        yield from _models(part, in_stack)


def _title(layer: keras.layers.Layer) -> str:
    return f"'{layer.name}' (of type {type(layer).__name__})"


def _after_earlier_calls(config: Any, made: dict) -> Any:
    """A config with functional models that find the calls of layers that have been made before.

    Each of their configs counts a layer's calls from nought, and Keras looks them up among all
    that the layer has had.
    """
    if isinstance(config, (list, tuple)):
        return type(config)(_after_earlier_calls(x, made) for x in config)
    if not isinstance(config, dict) or KEY in config:  # a stack looks after its own
        return config
    config = {k: _after_earlier_calls(x, made) for k, x in config.items()}
    if config.keys() >= _GRAPH:
        layers = config["layers"]
        before = {x["name"]: made[x[_ID]] for x in layers if x.get(_ID) in made}
        calls = {name: calls_in_graphs(layer) for name, layer in before.items()}
        for x in layers:
            x["inbound_nodes"] = _later(x["inbound_nodes"], calls)
        config["output_layers"] = _later(config["output_layers"], calls)
    return config


def _later(history: Any, calls: dict[str, int]) -> Any:
    """Nested `[layer's name, number of its call, number of the output]`, as of later calls."""
    if isinstance(history, dict):
        return {k: _later(x, calls) for k, x in history.items()}
    if not isinstance(history, (list, tuple)):
        return history
    if len(history) == 3 and isinstance(history[0], str) and isinstance(history[1], int):
        return [history[0], history[1] + calls.get(history[0], 0), history[2]]
    return type(history)(_later(x, calls) for x in history)


def _ids(config: Any) -> Iterator[int]:
    """The ids in a config, as often as they are there."""
    if isinstance(config, dict) and _ID in config:
        yield config[_ID]
    for part in _parts(config):
        yield from _ids(part)


def _parts(config: Any) -> Iterable:
    if isinstance(config, dict):
        return config.values()
    return config if isinstance(config, (list, tuple)) else ()


def _renumbered(config: Any, numbers: dict[int, int]) -> Any:
    """A config with other ids, and without those that have no number."""
    if isinstance(config, dict):
        config = {k: x for k, x in config.items() if k != _ID or x in numbers}
        return {k: numbers[x] if k == _ID else _renumbered(x, numbers) for k, x in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_renumbered(x, numbers) for x in config)
    return config
