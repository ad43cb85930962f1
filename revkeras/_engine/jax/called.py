"""What keeps XLA from merging a step's recomputation with its forward pass.

One program holds the whole training step. Where XLA saw both passes, it computed a block once and
kept its inside for the gradient, so memory grew with depth. Each compiler has its own barrier:

- GPU: optimization barriers around each step.
- CPU and TPU: each pass is a function that is called and not inlined. The CPU compiler drops
  optimization barriers before it merges; on a TPU, random bits behind one are kept.
- Convolutions on a CPU are faster by 13 times in the entry computation, so steps that have one are
  unrolled; XLA does not merge them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata

from revkeras._engine.carry import Carry
from revkeras._engine.jax.traces import compiler, is_eager
from revkeras._engine.step import Step
from revkeras._engine.walk import backward_pass, forward_pass
from revkeras.debugging import checks_enabled


@dataclasses.dataclass(frozen=True)
class Ways:
    """The two ways through a step, see `forward_pass` and `backward_pass`."""

    forward: Callable
    backward: Callable

    def read(self, state: list) -> list:
        return state


def passes_of(step: Step, carry: Carry, weights: list, state: list, known: dict) -> Ways:
    """The passes of a step; those of a step in `known` that is the same, which is traced once."""
    values = carry, weights, state
    if is_eager() or step.structure is None:
        return _ways(step, values)
    specs = tuple((x.shape, x.dtype) for x in jax.tree.leaves(values))
    # A message of `revkeras.debugging` names the step.
    flags = step.traits, checks_enabled() and step.name
    key = step.structure, flags, specs, jax.tree.structure(values)
    if key in known:
        first, found = known[key]
        step.packing.take_over(first.packing)
        return found
    found = _ways(step, values)
    known[key] = step, found
    return found


def _ways(step: Step, values: tuple) -> Ways:
    """The passes of a step on such values, each a piece that XLA does not look into."""
    forward, backward = forward_pass(step), backward_pass(step, step.block)
    if is_eager():
        return Ways(forward, backward)
    seal = fenced if compiler() == "gpu" else called
    if compiler() == "cpu" and _convolves(forward, *values):
        return Ways(forward, backward)
    return Ways(seal(forward), seal(backward))


def after(gate: Any, values: Any) -> Any:
    """The values, once those of `gate` are there; either may have `None` in it."""
    if is_eager() or compiler() != "gpu":
        return values
    return jax.lax.optimization_barrier((gate, values))[1]


def fenced(function: Callable) -> Callable:
    """`function` between two optimization barriers."""

    def call(*args: Any) -> Any:
        return jax.lax.optimization_barrier(function(*jax.lax.optimization_barrier(args)))

    return call


def called(function: Callable) -> Callable:
    """`function`, as one that XLA calls and does not inline."""

    def body(*args: Any) -> Any:
        with set_xla_metadata(inlineable=None):  # of the functions that it calls itself
            return function(*args)

    compiled = jax.jit(body)

    def call(*args: Any) -> Any:
        with set_xla_metadata(inlineable="false"):
            return compiled(*args)

    return call


def _convolves(function: Callable, *args: Any) -> bool:
    return "conv_general_dilated" in str(jax.make_jaxpr(function)(*args))
