"""Gradients of our own, and those that JAX finds."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from revkeras._engine.jax.memory_kinds import beside


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

    @jax.custom_vjp
    def function(inputs: Any, weights: list, state: list) -> tuple:
        return run(inputs, weights, state)[0]

    def forward(*arguments: Any) -> tuple:
        inputs, weights, state = jax.tree.map(lambda x: x.value, arguments)
        results, kept = run(inputs, weights, state)
        return results, (inputs if keeps == "inputs" else results[0], weights, kept)

    def backward(residuals: tuple, dresults: tuple) -> tuple:
        known, weights, kept = residuals
        dresults = jax.tree.map(_given, dresults, is_leaf=_is_leaf)
        dinputs, dweights = back(known, *dresults[:2], weights, kept)
        return dinputs, [beside(d, w) for d, w in zip(dweights, weights, strict=True)], None

    function.defvjp(forward, backward, symbolic_zeros=True)
    return function(inputs, weights, state)


def vjp(function: Callable, *arguments: Any) -> tuple[Any, Callable]:
    """`function(*arguments)`, and its vector-Jacobian product.

    Returns:
        `(outputs, pull_back)`: `pull_back(doutputs)` returns gradients in the structure of the
        arguments. Either side has `None` where there is no gradient.
    """
    outputs, pull_back = jax.vjp(function, *arguments)

    def pull_back_given(doutputs: Any) -> tuple:
        leaves, structure = jax.tree.flatten(outputs)
        given = jax.tree.leaves(doutputs, is_leaf=_is_leaf)
        if all(d is None or d.dtype == jax.dtypes.float0 for d in given):
            return jax.tree.map(lambda _: None, arguments)
        filled = [_filled(y, d) for y, d in zip(leaves, given, strict=True)]
        return pull_back(jax.tree.unflatten(structure, filled))

    return outputs, pull_back_given


def _is_leaf(x: Any) -> bool:
    return x is None or isinstance(x, SymbolicZero)


def _given(d: Any) -> Any:
    """A gradient that comes from outside, `None` where there is none."""
    is_missing = isinstance(d, SymbolicZero) or d.dtype == jax.dtypes.float0
    return None if is_missing else d


def _filled(y: Any, d: Any) -> Any:
    """The gradient as JAX takes it: zeros where there is none."""
    if not jnp.issubdtype(y.dtype, jnp.inexact):
        return np.zeros(y.shape, jax.dtypes.float0)
    return jnp.zeros_like(y) if d is None else d.astype(y.dtype)
