"""Nodes of PyTorch's graph with gradients of our own, and those that PyTorch finds."""

import contextvars
import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import torch

# Whether a backward pass is under way that is to be differentiated itself.
_differentiated_again = contextvars.ContextVar("differentiated_again", default=False)


def custom_vjp(
    run: Callable,
    back: Callable,
    inputs: Any,
    weights: list,
    state: list,
    place: Callable,
    keeps: str,
) -> tuple:
    """Calls `run(inputs, weights, state) -> (results, kept)`; the results have the gradient `back`.

    See the same verb of `revkeras._engine.tensorflow`.
    """
    arguments = inputs, weights, state
    tensors = keras.tree.flatten(arguments)
    call = _Call(run, back, keeps, keras.tree.map_structure(lambda _: 0, arguments))
    found = _Node.apply(call, *tensors)
    return keras.tree.pack_sequence_as(call.packed["results"], list(found))


@dataclasses.dataclass(frozen=True)
class _Call:
    """What a node knows beside the tensors that it keeps; `packed` has their structures."""

    run: Callable
    back: Callable
    keeps: str
    arguments: Any
    packed: dict = dataclasses.field(default_factory=dict)


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: torch.Tensor) -> tuple:
        inputs, weights, state = keras.tree.pack_sequence_as(call.arguments, list(tensors))
        results, kept = call.run(inputs, weights, state)
        # What is assigned in place after this is replayed as it was.
        assigned = {id(state[i]) for i in results[2]}
        kept = keras.tree.map_structure(lambda x: x.clone() if id(x) in assigned else x, kept)
        known = inputs if call.keeps == "inputs" else results[0]
        saved = known, weights, kept
        call.packed.update(
            results=keras.tree.map_structure(lambda _: 0, results),
            saved=keras.tree.map_structure(lambda _: 0, saved),
        )
        outputs = keras.tree.flatten(results)
        updates = keras.tree.flatten(results[2])
        integers = [y for y in outputs if not y.is_floating_point()]
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*integers, *updates)
        ctx.save_for_backward(*keras.tree.flatten(saved))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple:
        call = ctx.call
        doutputs, dsides, _ = keras.tree.pack_sequence_as(call.packed["results"], list(gradients))
        known, weights, kept = keras.tree.pack_sequence_as(
            call.packed["saved"], list(ctx.saved_tensors)
        )
        token = _differentiated_again.set(torch.is_grad_enabled())
        try:
            dinputs, dweights = call.back(known, doutputs, dsides, weights, kept)
        finally:
            _differentiated_again.reset(token)
        n_state = len(keras.tree.flatten(call.arguments[2]))
        return None, *keras.tree.flatten(dinputs), *dweights, *[None] * n_state


def vjp(function: Callable, *arguments: Any) -> tuple[Any, Callable]:
    """`function(*arguments)`, and its vector-Jacobian product.

    Returns:
        `(outputs, pull_back)`: `pull_back(doutputs)` returns gradients in the structure of the
        arguments. Either side has `None` where there is no gradient.
    """
    given = keras.tree.flatten(arguments)
    sources = [i for i, x in enumerate(given) if torch.is_tensor(x) and x.is_floating_point()]
    packed: list = []

    def call(*tensors: torch.Tensor) -> list:
        leaves = list(given)
        for i, x in zip(sources, tensors, strict=True):
            leaves[i] = x
        outputs = function(*keras.tree.pack_sequence_as(arguments, leaves))
        packed[:] = [outputs]
        return [y for y in keras.tree.flatten(outputs) if _is_float(y)]

    differentiate = _nested if _differentiated_again.get() else _taped
    floats, pull = differentiate(call, [given[i] for i in sources])
    floats = iter(floats)
    outputs = keras.tree.map_structure(lambda y: next(floats) if _is_float(y) else y, packed[0])
    are_float = [_is_float(y) for y in keras.tree.flatten(outputs)]

    def pull_back(doutputs: Any) -> tuple:
        ds = [d for d, f in zip(keras.tree.flatten(doutputs), are_float, strict=True) if f]
        found = dict(zip(sources, pull(ds), strict=True))
        leaves = [found.get(i) for i in range(len(given))]
        return tuple(keras.tree.pack_sequence_as(arguments, leaves))

    return outputs, pull_back


def _taped(function: Callable, sources: list) -> tuple[list, Callable]:
    """By a graph of its own, which is gone when it has been pulled through."""
    with torch.enable_grad():
        sources = [x.detach().requires_grad_() for x in sources]
        outputs = function(*sources)

    def pull(doutputs: list) -> list:
        pairs = [
            (y, d)
            for y, d in zip(outputs, doutputs, strict=True)
            if d is not None and y.requires_grad
        ]
        if not pairs or not sources:
            return [None] * len(sources)
        ys, ds = zip(*pairs, strict=True)
        return list(torch.autograd.grad(ys, sources, ds, allow_unused=True))

    return [y.detach() for y in outputs], pull


def _nested(function: Callable, sources: list) -> tuple[list, Callable]:
    """By a function transform, for gradients of gradients.

    A graph would go on through the tensors that a backward pass starts from, without end.
    """
    outputs, pull_all = torch.func.vjp(lambda *xs: tuple(function(*xs)), *sources)

    def pull(doutputs: list) -> list:
        if all(d is None for d in doutputs):
            return [None] * len(sources)
        filled = (torch.zeros_like(y) if d is None else d for y, d in zip(outputs, doutputs))
        return list(pull_all(tuple(filled)))

    return list(outputs), pull


def _is_float(x: Any) -> bool:
    return torch.is_tensor(x) and x.is_floating_point()
