"""Where a model has runs of equal residual blocks."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras

from revkeras._engine import verbs
from revkeras._keras import flatten_layers
from revkeras._stack.call_arguments import required_arguments
from revkeras._stack.reversible_sequential import ReversibleSequential
from revkeras.convert.inlined_blocks import additions_passed_over, with_blocks
from revkeras.convert.layer_calls import layer_calls

# A trace: by the layers' identities, their calls in one mode of the model.
CallsOfLayers = dict[int, list]


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
    layers = flatten_layers(model, include_self=False)
    stacks = [x for x in layers if isinstance(x, ReversibleSequential)]
    reversible = {id(inner) for stack in stacks for inner in _inner(stack)}
    own = [x for x in layers if id(x) not in reversible]
    kinds = _kinds(own)
    traces = _traces(model, [x for kind in kinds for x in kind])
    if isinstance(traces, str):
        raise ValueError(
            f"Model '{model.name}' could not be traced to look for runs of residual blocks: "
            f"{traces} Pass the names of a run's blocks as `layers`, in the order of their calls."
        )
    runs, looked_at = [], [f"'{x.name}': is a ReversibleSequential already" for x in stacks]
    for kind in kinds:
        found, reason = _runs_of(kind, traces)
        runs.extend(found)
        looked_at.append(f"{_describe(kind)}: {reason}")
    inside = {id(inner) for run in runs for x in run.blocks for inner in _inner(x)}
    runs = [run for run in runs if id(run.blocks[0]) not in inside]
    if not runs:
        others = (x for x in own if x not in stacks)
        looked_at += [*_unlike_any(others), *additions_passed_over(model)]
        looked_at += [
            f"'{x.name}' (a model in it): its own operations make residual blocks; convert it, "
            f"`to_momentum_net(model.get_layer({x.name!r}))`, and compile this model after that"
            for x in layers
            if isinstance(x, keras.Model) and with_blocks(x)
        ]
        raise ValueError(
            f"Model '{model.name}' has no run of equal residual blocks, that is layers of one type "
            "and with weights of the same shapes, each called on the output of the one before it, "
            "which add to their input and keep its shape. Looked at:\n"
            + "\n".join(f"- {line}" for line in looked_at or ["no layer with weights"])
            + "\nIn a functional model blocks may also be `x + f(x)` of its own operations, where "
            "f(x) reads nothing but x, and what is inside is read nowhere else. Make a layer or a "
            "`keras.Model` of each block that is another, and pass their names as `layers`."
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
    traces = _traces(model, blocks)
    known = not isinstance(traces, str)
    for block in blocks:
        if reason := _unfit(block, traces if known else [], residual=False):
            raise ValueError(
                "Invalid value for argument `layers`: expected blocks that the model calls once, "
                "each on the output of the one before it, and that keep its shape; "
                f"'{block.name}' (of type {type(block).__name__}) {reason}. Leave it out: what is "
                "before and behind it can be runs of their own."
            )
    if not known:
        return [FoundRun(blocks, None)]
    chains = _chains(blocks, traces)
    if alone := [chain[0].name for chain in chains if len(chain) < 2]:
        raise ValueError(
            "Invalid value for argument `layers`: expected blocks each of which is called on the "
            "output of the one before it, with the same further arguments, and that nothing else "
            f"reads; {alone} stand alone."
        )
    return [_as_run(chain, traces) for chain in chains]


def _runs_of(kind: list, traces: list[CallsOfLayers]) -> tuple[list[FoundRun], str]:
    """The runs among layers that are alike, and why there are no more."""
    unfit = {id(x): _unfit(x, traces, residual=True) for x in kind}
    reasons = set(unfit.values()) - {None}
    fit = [x for x in kind if not unfit[id(x)]]
    chains = [chain for chain in _chains(fit, traces) if len(chain) > 1]
    if fit and not chains:
        reasons.add(
            "is not called on the output of another one with the same further arguments, or "
            "something else reads that output"
        )
    return [_as_run(chain, traces) for chain in chains], "; ".join(sorted(reasons)) or "taken"


def _unfit(layer: keras.layers.Layer, traces: list[CallsOfLayers], residual: bool) -> str | None:
    """Why a layer cannot be a block of a run."""
    if layer.activity_regularizer is not None:  # which both the block and the run would add
        return "has an activity regularizer of its own"
    reasons = (_unfit_calls(trace.get(id(layer), []), residual) for trace in traces)
    return next((reason for reason in reasons if reason), None)


def _unfit_calls(calls: list, residual: bool) -> str | None:
    """Why a layer with these calls in one trace cannot be a block of a run."""
    if obstacle := next((call.obstacle for call in calls if call.obstacle), None):
        return obstacle
    if len(calls) != 1:
        return "is not called" if not calls else "is called more than once"
    (call,) = calls
    source, output = tuple(call.source.shape), tuple(call.output.shape)
    if source != output:
        return f"changes the shape {source} to {output}"
    source, output = (keras.backend.standardize_dtype(x.dtype) for x in (call.source, call.output))
    if source != output:
        return f"changes the dtype {source} to {output}"
    if call.returned == 1:
        return "returns a tuple of one tensor instead of the tensor"
    if residual and not call.adds_input:
        return "adds nothing to its input"
    return None


def _chains(layers: Iterable[keras.layers.Layer], traces: list[CallsOfLayers]) -> list[list]:
    """The layers in chains: each goes on from the one before it, alone, in all traces."""
    first, *_ = traces
    by_id = {id(x): x for x in sorted(layers, key=lambda x: first[id(x)][0].read_from)}
    links = [set(_links(by_id, trace)) for trace in traces]
    after = dict(set.intersection(*links))
    chains = [[x] for i, x in by_id.items() if i not in set(after.values())]
    for chain in chains:
        while (last := id(chain[-1])) in after:
            chain.append(by_id[after[last]])
    return chains


def _links(layers: Iterable[int], trace: CallsOfLayers) -> Iterator[tuple[int, int]]:
    """Of these layers, those pairs of which the second goes on from the first alone."""
    calls = [trace[i][0] for i in layers]
    of_output = {id(call.output): call for call in calls}
    for call in calls:
        before = of_output.get(id(call.source))
        if before is not None and before is not call and _follows(call, before):
            yield id(before.layer), id(call.layer)


def _follows(call: Any, before: Any) -> bool:
    start, stop = call.read_from
    return (
        not before.leaves
        and all(start <= reader < stop for reader in before.readers)
        and call.returned == before.returned
        and same_arguments(call.arguments, before.arguments)
    )


def same_arguments(a: dict, b: dict) -> bool:
    """Whether two calls got the same tensors and equal values."""
    return set(a) == set(b) and all(_is_same(a[name], b[name]) for name in a)


def _is_same(a: Any, b: Any) -> bool:
    flat_a, flat_b = keras.tree.flatten(a), keras.tree.flatten(b)
    return len(flat_a) == len(flat_b) and all(
        x is y
        or (isinstance(x, (bool, int, float, str)) and x == y)
        or (keras.ops.is_tensor(x) and keras.ops.is_tensor(y) and verbs.is_same_tensor(x, y))
        for x, y in zip(flat_a, flat_b)
    )


def _as_run(chain: list, traces: list[CallsOfLayers]) -> FoundRun:
    calls = [trace[id(x)][0] for x in chain for trace in traces]
    return FoundRun(chain, frozenset(name for call in calls for name in call.arguments))


def _kinds(layers: Iterable[keras.layers.Layer]) -> list[list]:
    """The layers with weights, those together that are alike; two or more of each."""
    return [kind for kind in _all_kinds(layers) if len(kind) > 1]


def _unlike_any(layers: Iterable[keras.layers.Layer]) -> list[str]:
    """What there is only one of among the layers with weights, in a line at most."""
    layers = [kind[0] for kind in _all_kinds(layers) if len(kind) == 1]
    reason = "no other layer has the type and weights of these shapes"
    return [f"{len(layers)} layers ({_names(layers)}): {reason}"] if layers else []


def _all_kinds(layers: Iterable[keras.layers.Layer]) -> list[list]:
    kinds: dict[tuple, list] = {}
    for layer in layers:
        if layer.weights:
            shapes = tuple((tuple(v.shape), v.dtype) for v in layer.weights)
            kinds.setdefault((type(layer), shapes), []).append(layer)
    return list(kinds.values())


def _traces(model: keras.Model, layers: Iterable[keras.layers.Layer]) -> list[CallsOfLayers] | str:
    """The model's calls of layers, as it is called and in training, or why they are not known."""
    layers = list(layers)

    def trace(arguments: list, **mode: Any) -> CallsOfLayers:
        found: CallsOfLayers = {}
        function = functools.partial(_call, model, mode)
        for call in layer_calls(function, arguments, layers):
            found.setdefault(id(call.layer), []).append(call)
        return found

    reason = "its inputs are not known."
    for arguments in _inputs(model):
        try:
            traces = [trace(arguments)]
        except Exception as error:  # whatever a user's `call()` raises
            message = str(error).strip().partition("\n")[0].rstrip(".")
            reason = f"{type(error).__name__}{message and ': '}{message}."
            continue
        with contextlib.suppress(Exception):  # in a mode that fails nobody reads anything
            traces.append(trace(arguments, training=True))
        return traces
    return reason


def _call(model: keras.Model, mode: dict, args: list, kwargs: dict) -> Any:
    return model(*args, **kwargs, **mode)


def _inputs(model: keras.Model) -> list:
    """What the model may be called on: alternatives, each `[args, kwargs]` of `KerasTensor`s."""
    if isinstance(model, keras.Sequential):
        return [[[model.inputs[0]], {}]] if model.inputs else []
    if hasattr(model, "operations"):  # a functional model
        return [[[model.input], {}]]
    built = model.get_build_config() or {}
    first, more = [], {k.removesuffix("_shape"): v for k, v in built.get("shapes_dict", {}).items()}
    if built.get("input_shape") is not None:
        # Keras notes the first argument's shape alone; that of a mask, say, is the same.
        first = [built["input_shape"]]
        more = dict.fromkeys(sorted(required_arguments(model)), first[0])
    shapes = [*first, *more.values()]
    if not 0 < len(shapes) <= 4:  # there are twice as many alternatives for each
        return []
    alternatives = []
    for dtypes in itertools.product(("float32", "int32"), repeat=len(shapes)):
        specs = list(map(_spec, shapes, dtypes))
        alternatives.append([specs[: len(first)], dict(zip(more, specs[len(first) :]))])
    return alternatives


def _spec(shape: Any, dtype: str) -> Any:
    return keras.tree.map_shape_structure(lambda s: keras.KerasTensor((None, *s[1:]), dtype), shape)


def _layer_of(model: keras.Model, name: Any) -> keras.layers.Layer:
    layers = {id(x): x for x in flatten_layers(model, include_self=False) if x.name == name}
    if len(layers) == 1:
        return next(iter(layers.values()))
    everywhere = sorted({x.name for x in flatten_layers(model, include_self=False)})
    what = f"{len(layers)} layers have" if layers else "no layer has"
    raise ValueError(
        f"Invalid value for argument `layers`: {what} the name {name!r} in model '{model.name}'. "
        f"Its layers are {everywhere}."
    )


def _describe(kind: list) -> str:
    return f"{len(kind)} x {type(kind[0]).__name__} ({_names(kind)})"


def _names(layers: list) -> str:
    shown = ", ".join(f"'{layer.name}'" for layer in layers[:3])
    return shown + (", ..." if len(layers) > 3 else "")


def _inner(layer: keras.layers.Layer) -> list:
    return flatten_layers(layer, include_self=False)
