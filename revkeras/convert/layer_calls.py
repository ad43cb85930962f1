"""Which layers a model calls, on what, and what becomes of it: read off a traced function."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras

from revkeras._engine import verbs
from revkeras._engine.operation import Operation
from revkeras._keras import call_signature


@dataclasses.dataclass(frozen=True)
class LayerCall:
    """One call of a layer inside a traced function.

    Attributes:
        layer: The layer.
        source: What it was called on.
        output: What it returned first.
        returned: How many things it returned in a tuple or list, or `None` for one without.
        obstacle: What keeps the call from being looked at, if something does; then nothing
            of what follows is known.
        arguments: Its further arguments, without those left `None`.
        adds_input: Whether something computed of the input is added to the input itself.
        keeps_input: Whether the input reaches the output through additions alone.
        read_from: The call's first operation, and the one behind its last, by their numbers.
        readers: The numbers of the operations that read the output.
        leaves: Whether the output is one of the function's.
    """

    layer: keras.layers.Layer
    source: Any
    output: Any
    returned: int | None
    obstacle: str | None = None
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    adds_input: bool = False
    keeps_input: bool = False
    read_from: tuple[int, int] = (0, 0)
    readers: frozenset[int] = frozenset()
    leaves: bool = False


def layer_calls(
    function: Callable, arguments: Any, layers: Sequence[keras.layers.Layer]
) -> list[LayerCall]:
    """Traces `function(*arguments)`; gives the calls of `layers` in order.

    Nothing is computed and no variable changes.

    Args:
        function: A function of a structure of tensors.
        arguments: A list of structures of `KerasTensor`s.
        layers: The layers to look at.
    """
    found: list[LayerCall] = []

    def recorded(*arguments: Any) -> Any:
        found.clear()  # a backend may trace this more than once
        with _Recording(layers, found):
            return function(*arguments)

    operations, leaving = verbs.operations_of(recorded, arguments)
    marks = {op.label: i for i, op in enumerate(operations) if op.kind == "mark"}
    return [
        call if call.obstacle else _looked_at(call, n, operations, marks, leaving)
        for n, call in enumerate(found)
    ]


class _Recording:
    """While it is entered, calls of the layers are noted in `found`, and marked in the trace."""

    def __init__(self, layers: Sequence[keras.layers.Layer], found: list[LayerCall]):
        self.layers, self.found = layers, found

    def __enter__(self) -> None:
        self.own = [vars(layer).get("call") for layer in self.layers]
        for layer in self.layers:
            layer.call = self._recorder(layer, layer.call)

    def __exit__(self, *_: Any) -> None:
        for layer, own in zip(self.layers, self.own, strict=True):
            if own is None:
                del layer.call  # the class's shows again
            else:
                layer.call = own

    def _recorder(self, layer: keras.layers.Layer, call: Callable) -> Callable:
        def record(*args: Any, **kwargs: Any) -> Any:
            bound = call_signature(layer).bind(*args, **kwargs).arguments
            source, *_ = bound.values()
            number = len(self.found)
            self.found.append(None)  # calls inside of this one come behind it
            if keras.ops.is_tensor(source):
                verbs.mark(source, f"{number}_source")
            outputs = call(*args, **kwargs)
            several = isinstance(outputs, (tuple, list))
            output = next(iter(outputs), None) if several else outputs
            if keras.ops.is_tensor(output):
                verbs.mark(output, f"{number}_output")
            arguments = {k: v for k, v in list(bound.items())[1:] if v is not None}
            arguments.pop("training", None)
            self.found[number] = LayerCall(
                layer,
                source,
                output,
                len(outputs) if several else None,
                obstacle=_obstacle(source, output),
                arguments=arguments,
            )
            return outputs

        return record


def _obstacle(source: Any, output: Any) -> str | None:
    if isinstance(source, (list, tuple, dict)):
        return "is called on several tensors in one argument"
    if not keras.ops.is_tensor(output):
        return "returns something else than a tensor first"
    return None


def _looked_at(
    call: LayerCall, n: int, operations: list[Operation], marks: dict, leaving: set
) -> LayerCall:
    """The call, with what its operations tell."""
    start, stop = (marks.get(f"{n}_{end}") for end in ("source", "output"))
    if start is None or stop is None:
        return dataclasses.replace(call, obstacle="is called inside a loop or a branch")
    (source,), (output,) = operations[start].inputs, operations[stop].inputs
    same, kept, adds = {source}, {source}, False
    for op in operations[start:stop]:
        if op.kind == "hands on":
            same.update(y for x, y in zip(op.inputs, op.outputs) if x in same)
            kept.update(y for x, y in zip(op.inputs, op.outputs) if x in kept)
        elif op.kind == "adds":
            adds = adds or bool(same.intersection(op.inputs))
            if kept.intersection(op.inputs):
                kept.update(op.outputs)
    readers = (i for i, op in enumerate(operations) if output in op.inputs and op.kind != "mark")
    return dataclasses.replace(
        call,
        adds_input=adds,
        keeps_input=output in kept,
        read_from=(start, stop),
        readers=frozenset(readers),
        leaves=output in leaving,
    )
