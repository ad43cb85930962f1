"""Nodes of PyTorch's graph with gradients of our own, and those that PyTorch finds."""

import contextvars
import dataclasses
from collections.abc import Callable
from typing import Any

import optree
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
    tensors, structure = _flat((inputs, weights, state))
    call = _NodeCall(run, back, keeps, structure)
    found = _Node.apply(call, *tensors)
    return optree.tree_unflatten(call.structures["results"], list(found))


@dataclasses.dataclass(frozen=True)
class _NodeCall:
    """What a node knows beside the tensors that it keeps; `structures` has those of others."""

    run: Callable
    back: Callable
    keeps: str
    arguments: Any
    structures: dict = dataclasses.field(default_factory=dict)


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _NodeCall, *tensors: torch.Tensor) -> tuple:
        inputs, weights, state = optree.tree_unflatten(call.arguments, list(tensors))
        results, kept = call.run(inputs, weights, state)
        # What is assigned in place after this is replayed as it was. Others may assign too: seeds,
        # statistics and metrics are small. Frozen kernels are not copied, and PyTorch notices.
        assigned = {id(state[i]) for i in results[2]}
        kept = optree.tree_map(lambda x: x.clone() if id(x) in assigned or x.dim() < 2 else x, kept)
        known = inputs if call.keeps == "inputs" else results[0]
        outputs, call.structures["results"] = _flat(results)
        saved, call.structures["saved"] = _flat((known, weights, kept))
        integers = [y for y in outputs if not y.is_floating_point()]
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*integers, *_flat(results[2])[0])
        ctx.save_for_backward(*saved)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple:
        call = ctx.call
        doutputs, dsides, _ = optree.tree_unflatten(call.structures["results"], list(gradients))
        saved = optree.tree_unflatten(call.structures["saved"], list(ctx.saved_tensors))
        known, weights, kept = saved
        token = _differentiated_again.set(torch.is_grad_enabled())
        try:
            dinputs, dweights = call.back(known, doutputs, dsides, weights, kept)
        finally:
            _differentiated_again.reset(token)
        n_state = call.arguments.num_leaves - len(_flat(dinputs)[0]) - len(weights)
        return None, *_flat(dinputs)[0], *dweights, *[None] * n_state


def vjp(function: Callable, *arguments: Any) -> tuple[Any, Callable]:
    """`function(*arguments)`, and its vector-Jacobian product.

    Returns:
        `(outputs, pull_back)`: `pull_back(doutputs)` returns gradients in the structure of the
        arguments. Either side has `None` where there is no gradient.
    """
    given, structure = _flat(arguments)
    sources = [i for i, x in enumerate(given) if _is_float(x)]
    found: list = []

    def call(*tensors: torch.Tensor) -> list:
        leaves = list(given)
        for i, x in zip(sources, tensors, strict=True):
            leaves[i] = x
        found[:] = _flat(function(*optree.tree_unflatten(structure, leaves)))
        return [y for y in found[0] if _is_float(y)]

    differentiate = _nested if _differentiated_again.get() else _taped
    floats, pull = differentiate(call, [given[i] for i in sources])
    leaves, outputs_structure = found
    found.clear()
    are_float = [_is_float(y) for y in leaves]
    floats = iter(floats)
    leaves = [next(floats) if f else y for y, f in zip(leaves, are_float, strict=True)]

    def pull_back(doutputs: Any) -> tuple:
        ds = [d for d, f in zip(_flat(doutputs)[0], are_float, strict=True) if f]
        of_sources = dict(zip(sources, pull(ds), strict=True))
        gradients = [of_sources.get(i) for i in range(len(given))]
        return tuple(optree.tree_unflatten(structure, gradients))

    return optree.tree_unflatten(outputs_structure, leaves), pull_back


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


def _flat(structure: Any) -> tuple[list, Any]:
    """The leaves, `None` among them, and what they are in.

    `keras.tree` on PyTorch leaves cycles behind that keep tensors until they are collected.
    """
    return optree.tree_flatten(structure, none_is_leaf=True)


def _is_float(x: Any) -> bool:
    return torch.is_tensor(x) and x.is_floating_point()
