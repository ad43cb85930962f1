"""Checks of values that are known when a program runs."""

from typing import Any

import jax
import jax.numpy as jnp

from revkeras._engine.jax.traces import is_eager
from revkeras.debugging import checks_enabled


def require(condition: Any, message: str, tensors: list) -> list:
    """`tensors`; where `condition` is found to be false, an error when the program runs."""

    def check(holds: Any) -> None:
        if not holds:
            raise ValueError(message)

    if is_eager():
        check(jnp.all(condition))
    else:
        jax.debug.callback(check, jnp.all(condition))
    return tensors


def finite(tensors: Any, subject: str) -> Any:
    """The tensors; where checks are enabled, an error if one has values that are not finite."""
    if checks_enabled():
        for x in jax.tree.leaves(tensors):
            if jnp.issubdtype(x.dtype, jnp.inexact):
                require(jnp.isfinite(x), f"{subject} values that are not finite", [])
    return tensors
