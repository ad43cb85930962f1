"""A function's operations, see `revkeras._engine.tensorflow.graph_operations`."""

from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import keras
from jax.ad_checkpoint import checkpoint_name

from revkeras._engine.jax._borrowed import parent_of, primal_of, readers_of
from revkeras._engine.operation import Operation, at_known_sizes

_KINDS = {
    **dict.fromkeys(("convert_element_type", "copy", "copy_p", "sharding_constraint"), "hands on"),
    **dict.fromkeys(("add", "add_any"), "adds"),
    "name": "mark",
}
# Primitives that call a function once, by the parameter that has it.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_lin": "call_jaxpr",
}


def operations_of(function: Callable, arguments: Any) -> tuple[list[Operation], set[Hashable]]:
    """The operations of `function(*arguments)`, and the keys of the tensors that it returns."""

    def traced(*arguments: Any) -> list:
        with keras.StatelessScope():
            return [x for x in keras.tree.flatten(function(*arguments)) if keras.ops.is_tensor(x)]

    def jaxpr_of(specs: Any) -> Any:
        return jax.make_jaxpr(traced)(*keras.tree.map_structure(_spec, specs)).jaxpr

    jaxpr = at_known_sizes(jaxpr_of, arguments)
    same: dict[int, Hashable] = {}
    operations = list(_operations(jaxpr, same))
    return operations, {_key(x, same) for x in jaxpr.outvars}


def mark(x: jax.Array, label: str) -> None:
    """Makes an operation of kind `"mark"` that reads `x`, in a function that is looked at."""
    checkpoint_name(x, label)


def is_same_tensor(a: jax.Array, b: jax.Array) -> bool:
    """Whether two tensors are the same but for casts, which each layer makes for itself."""
    a, b = _uncast(a), _uncast(b)
    if isinstance(a, jax.core.Tracer) or isinstance(b, jax.core.Tracer):
        return a is b
    return a is b or (a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all()))


def is_read(x: jax.Array) -> bool:
    """Whether an operation has read a tracer; of arrays nobody knows."""
    return any(_KINDS.get(name) != "mark" for name in readers_of(x))


def _spec(x: keras.KerasTensor) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _operations(jaxpr: Any, same: dict[int, Hashable]) -> Iterator[Operation]:
    """Those of a jaxpr and of the functions that it calls; `same` has the keys of variables."""
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        inputs = tuple(_key(x, same) for x in eqn.invars)
        if name in _CALLS:
            inner = eqn.params[_CALLS[name]]
            inner = getattr(inner, "jaxpr", inner)
            # One function that is called twice has the same variables twice.
            own = {id(x): key for x, key in zip(inner.invars, inputs, strict=True)}
            yield from _operations(inner, own)
            same.update((id(x), _key(y, own)) for x, y in zip(eqn.outvars, inner.outvars))
            continue
        for x in eqn.outvars:
            same[id(x)] = object()
        outputs = tuple(same[id(x)] for x in eqn.outvars)
        label = eqn.params["name"] if name == "name" else None
        yield Operation(_KINDS.get(name, "computes"), inputs, outputs, label)


def _key(x: Any, same: dict[int, Hashable]) -> Hashable:
    return same.setdefault(id(x), object())


def _uncast(x: Any) -> Any:
    x = primal_of(x)
    while (parent := parent_of(x)) is not None and parent[0] == "convert_element_type":
        x = parent[1]
    return x
