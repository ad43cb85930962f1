"""Where a model has runs of equal residual blocks."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import keras

from revkeras import backprop


@dataclasses.dataclass(frozen=True)
class FoundRun:
    """Blocks that a model calls one on another's output.

    Attributes:
        blocks: In the order of their calls.
        arguments: The names of the further arguments that all of them get, or `None` where that
            is not known.
    """

    blocks: list[keras.layers.Layer]
    arguments: frozenset[str] | None


def find_runs(model: keras.Model) -> list[FoundRun]:
    """The model's runs of at least two equal residual blocks.

    Raises:
        ValueError: if there are none; it tells what was looked at.
    """
    kinds = _kinds(model)
    calls = _calls(model, [x for kind in kinds for x in kind])
    if isinstance(calls, str):
        raise ValueError(
            f"Model '{model.name}' could not be traced to look for runs of residual blocks: "
            f"{calls} Pass the names of a run's blocks as `layers`, in the order of their calls."
        )
    runs, looked_at = [], []
    for kind in kinds:
        found, reason = _runs_of(kind, calls)
        runs.extend(found)
        looked_at.append(f"{_describe(kind)}: {reason}")
    inside = {id(inner) for run in runs for x in run.blocks for inner in _inner(x)}
    runs = [run for run in runs if id(run.blocks[0]) not in inside]
    if not runs:
        raise ValueError(
            f"Model '{model.name}' has no run of equal residual blocks, that is layers of one type "
            "and with weights of the same shapes, each called on the output of the one before it, "
            "which add to their input and keep its shape. Looked at:\n"
            + "\n".join(f"- {line}" for line in looked_at or ["no two layers that are alike"])
            + "\nPass the names of the blocks as `layers` to convert others."
        )
    return runs


def named_runs(model: keras.Model, names: Any) -> list[FoundRun]:
    """The runs that layers of these names form.

    Raises:
        ValueError: for names that are not those of layers that form runs.
    """
    if isinstance(names, str) or not isinstance(names, Sequence) or len(names) < 2:
        raise ValueError(
            "Invalid value for argument `layers`: expected a list of at least two names of layers, "
            f"received layers={names!r}."
        )
    blocks = [_layer_of(model, name) for name in names]
    if len({id(x) for x in blocks}) < len(blocks):
        raise ValueError(
            "Invalid value for argument `layers`: expected each name once, received "
            f"layers={list(names)}."
        )
    calls = _calls(model, blocks)
    if isinstance(calls, str):
        return [FoundRun(blocks, None)]
    by_layer = _by_layer(calls)
    for block in blocks:
        if reason := _unfit(by_layer.get(id(block), []), residual=False):
            raise ValueError(
                f"Invalid value for argument `layers`: '{block.name}' (of type "
                f"{type(block).__name__}) {reason}."
            )
    chains = _chains([by_layer[id(block)][0] for block in blocks])
    if alone := [chain[0].layer.name for chain in chains if len(chain) < 2]:
        raise ValueError(
            "Invalid value for argument `layers`: expected blocks each of which is called on the "
            "output of the one before it, with the same further arguments, and that nothing else "
            f"reads; {alone} stand alone."
        )
    return [_as_run(chain) for chain in chains]


def _runs_of(kind: list, calls: list) -> tuple[list[FoundRun], str]:
    """The runs among layers that are alike, and why there are no more."""
    by_layer = _by_layer(calls)
    own = [by_layer.get(id(x), []) for x in kind]
    reasons = {_unfit(c, residual=True) for c in own} - {None}
    fit = [c[0] for c in own if not _unfit(c, residual=True)]
    chains = [chain for chain in _chains(fit) if len(chain) > 1]
    if fit and not chains:
        reasons.add(
            "is not called on the output of another one with the same further arguments, or "
            "something else reads that output"
        )
    return [_as_run(chain) for chain in chains], "; ".join(sorted(reasons)) or "taken"


def _unfit(calls: list, residual: bool) -> str | None:
    """Why a layer with these calls cannot be a block of a run."""
    if len(calls) != 1:
        return "is not called" if not calls else "is called more than once"
    (call,) = calls
    source, output = tuple(call.source.shape), tuple(call.output.shape)
    if source != output:
        return f"changes the shape {source} to {output}"
    if call.source.dtype != call.output.dtype:
        return f"changes the dtype {call.source.dtype.name} to {call.output.dtype.name}"
    if residual and not call.adds_input:
        return "adds nothing to its input"
    return None


def _chains(calls: list) -> list[list]:
    """The calls in order, cut where one does not go on from the one before it alone."""
    order = sorted(calls, key=lambda call: call.read_from)
    chains = [order[:1]] if order else []
    for before, call in zip(order, order[1:]):
        start, stop = call.read_from
        follows = (
            call.source is before.output
            and not before.leaves
            and all(start <= reader < stop for reader in before.readers)
            and same_arguments(call.arguments, before.arguments)
        )
        if follows:
            chains[-1].append(call)
        else:
            chains.append([call])
    return chains


def same_arguments(a: dict, b: dict) -> bool:
    """Whether two calls got the same tensors and equal values."""
    return set(a) == set(b) and all(_is_same(a[name], b[name]) for name in a)


def _is_same(a: Any, b: Any) -> bool:
    flat_a, flat_b = keras.tree.flatten(a), keras.tree.flatten(b)
    return len(flat_a) == len(flat_b) and all(
        x is y
        or (isinstance(x, (bool, int, float, str)) and x == y)
        or (keras.ops.is_tensor(x) and keras.ops.is_tensor(y) and backprop.is_same_tensor(x, y))
        for x, y in zip(flat_a, flat_b)
    )


def _as_run(chain: list) -> FoundRun:
    names = frozenset(name for call in chain for name in call.arguments)
    return FoundRun([call.layer for call in chain], names)


def _by_layer(calls: list) -> dict[int, list]:
    found: dict[int, list] = {}
    for call in calls:
        found.setdefault(id(call.layer), []).append(call)
    return found


def _kinds(model: keras.Model) -> list[list]:
    """The model's layers with weights, those together that are alike; two or more of each."""
    kinds: dict[tuple, list] = {}
    for layer in model._flatten_layers(include_self=False):
        if layer.weights:
            shapes = tuple((tuple(v.shape), v.dtype) for v in layer.weights)
            kinds.setdefault((type(layer), shapes), []).append(layer)
    return [kind for kind in kinds.values() if len(kind) > 1]


def _calls(model: keras.Model, layers: Iterable[keras.layers.Layer]) -> list | str:
    """The model's calls of layers, or why they are not known."""
    reason = "its inputs are not known."
    for inputs in _inputs(model):
        try:
            return backprop.layer_calls(model, inputs, list(layers))
        except Exception as error:  # whatever a user's `call()` raises
            reason = f"{type(error).__name__}: {str(error).splitlines()[0]}."
    return reason


def _inputs(model: keras.Model) -> list:
    """What the model may be called on: alternatives, each a list of structures of tensors."""
    if isinstance(model, keras.Sequential):
        return [[model.inputs[0]]] if model.inputs else []
    if hasattr(model, "operations"):  # a functional model
        return [[model.input]]
    shapes = model.get_build_config() or {}
    shape = shapes.get("input_shape")
    if shape is None and len(shapes.get("shapes_dict", {})) == 1:
        (shape,) = shapes["shapes_dict"].values()
    if shape is None:
        return []

    def spec(dtype: str) -> Any:
        return keras.tree.map_shape_structure(
            lambda s: keras.KerasTensor((None, *s[1:]), dtype), shape
        )

    return [[spec("float32")], [spec("int32")]]


def _layer_of(model: keras.Model, name: Any) -> keras.layers.Layer:
    layers = {id(x): x for x in model._flatten_layers(include_self=False) if x.name == name}
    if len(layers) == 1:
        return next(iter(layers.values()))
    everywhere = sorted({x.name for x in model._flatten_layers(include_self=False)})
    what = f"{len(layers)} layers have" if layers else "no layer has"
    raise ValueError(
        f"Invalid value for argument `layers`: {what} the name {name!r} in model '{model.name}'. "
        f"Its layers are {everywhere}."
    )


def _describe(kind: list) -> str:
    names = [f"'{layer.name}'" for layer in kind]
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(kind)} x {type(kind[0]).__name__} ({shown})"


def _inner(layer: keras.layers.Layer) -> list:
    return list(layer._flatten_layers(include_self=False))
