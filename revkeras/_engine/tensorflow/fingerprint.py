"""Whether two functions trace to the same graph."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf

from revkeras._engine.tensorflow._private import COLOCATION, CUSTOM_GRADIENT
from revkeras._engine.tensorflow.tracing import trace_function


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What a traced graph comes to.

    Attributes:
        digest: Equal for graphs of the same operations, attributes, constants,
            shapes and dtypes, that read the same tensors from outside.
        shows_gradient: Whether the graph also tells what its gradient is. It does
            not where a custom gradient is another Python function at each call.
        operations: The types of the operations in it.
        reads: The tensors that are read from outside. They are told apart by their
            addresses, so they have to live as long as the fingerprint does.
        is_used: Whether anything in it reads each of the arguments.
    """

    digest: bytes
    shows_gradient: bool
    operations: frozenset[str] = dataclasses.field(compare=False, repr=False)
    reads: tuple = dataclasses.field(compare=False, repr=False)
    is_used: tuple[bool, ...] = dataclasses.field(compare=False, repr=False)


def fingerprint(function: Callable, arguments: Any) -> Fingerprint:
    """The fingerprint of `function(*arguments)`, for tensors of the arguments' specs."""
    found = trace_function(function, arguments)
    definition = found.definition
    reader = _Reader({f.signature.name: f for f in definition.library.function})
    names = _numbered(definition.node)
    nodes = reader.nodes(definition.node, names)
    given = tf.nest.map_structure(lambda x: x is not None, arguments)
    results = tf.nest.map_structure(
        lambda y: None if y is None else _renamed(y.name, names), found.results
    )
    reads = [(id(outside), _renamed(x.name, names)) for outside, x in found.reads]
    return Fingerprint(
        _digest([*nodes, repr((given, results, reads)).encode()]),
        not reader.custom_gradients,
        frozenset(reader.operations),
        tuple(outside for outside, _ in found.reads),
        tuple(found.is_used),
    )


class _Reader:
    """Reads nodes and the functions that they call, and puts numbers in the place of names."""

    def __init__(self, functions: dict):
        self.functions = functions
        self.digests: dict[str, bytes] = {}
        self.custom_gradients: dict[bytes, bytes] = {}
        self.operations: set[str] = set()

    def nodes(self, nodes: Sequence, names: dict[str, str]) -> list[bytes]:
        for node in nodes:
            self.operations.add(node.op)
            node.name = names[node.name]
            node.input[:] = [_renamed(reference, names) for reference in node.input]
            node.ClearField("experimental_debug_info")
            for key, value in node.attr.items():
                self.attribute(key, value, names)
        return [node.SerializeToString(deterministic=True) for node in nodes]

    def attribute(self, key: str, value: Any, names: dict[str, str]) -> None:
        kind = value.WhichOneof("value")
        if key == COLOCATION:  # where operations are to stand together
            value.list.s[:] = [self.location(s, names) for s in value.list.s]
        elif key == CUSTOM_GRADIENT:
            known = self.custom_gradients
            value.s = known.setdefault(value.s, b"gradient %d" % len(known))
        elif kind == "func":
            self.call(value.func, names)
        elif kind == "list":
            for function in value.list.func:
                self.call(function, names)

    def call(self, function: Any, names: dict[str, str]) -> None:
        function.name = self.function(function.name).hex()
        for key, value in function.attr.items():
            self.attribute(key, value, names)

    def location(self, value: bytes, names: dict[str, str]) -> bytes:
        prefix, _, name = value.decode().partition("@")
        return f"{prefix}@{names.get(name, name)}".encode()

    def function(self, name: str) -> bytes:
        """The digest of a function that the graph calls."""
        if name not in self.functions:
            return name.encode()
        if name not in self.digests:
            function = self.functions[name]
            arguments = {
                a.name: f"argument {i}" for i, a in enumerate(function.signature.input_arg)
            }
            names = arguments | _numbered(function.node_def)
            parts = self.nodes(function.node_def, names)
            for key, value in function.attr.items():
                self.attribute(key, value, names)
            results = [
                (_renamed(function.ret[y.name], names), y.type)
                for y in function.signature.output_arg
            ]
            controls = sorted(names[node] for node in function.control_ret.values())
            types = [a.type for a in function.signature.input_arg]
            attributes = sorted(
                (key, value.SerializeToString(deterministic=True))
                for key, value in function.attr.items()
            )
            parts.append(repr((types, results, controls, attributes)).encode())
            self.digests[name] = _digest(parts)
        return self.digests[name]


def _numbered(nodes: Iterable) -> dict[str, str]:
    return {node.name: str(number) for number, node in enumerate(nodes)}


def _renamed(reference: str, names: dict[str, str]) -> str:
    control = "^" * reference.startswith("^")
    name, *output = reference.removeprefix("^").split(":")
    return control + ":".join([names[name], *output])


def _digest(parts: Iterable[bytes]) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.digest()
