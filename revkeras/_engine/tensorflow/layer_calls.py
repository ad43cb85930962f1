"""Which layers a model calls, on what, and what becomes of it: read off a traced graph."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from revkeras._engine.tensorflow._private import FuncGraph
from revkeras._keras import call_signature

# Operations that hand a tensor on as it is.
_PASSING = {"Identity", "IdentityN", "Cast", "EnsureShape", "StopGradient"}
_ADDING = {"Add", "AddV2", "AddN"}
# Operations that read a tensor's shape alone.
_MEASURING = {"Shape", "ShapeN", "Size", "Rank"}


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
    graph, found = FuncGraph("layer_calls"), []
    with graph.as_default(), keras.StatelessScope(), _Recording(layers, graph, found):
        placeholders = keras.tree.map_structure(
            lambda x: tf.compat.v1.placeholder(x.dtype, x.shape), arguments
        )
        results = function(*placeholders)
    operations = graph.get_operations()
    number = {op.name: i for i, op in enumerate(operations)}
    leaving = {_key(x) for x in keras.tree.flatten(results)}
    return [_as_call(*record, graph, operations, number, leaving) for record in found]


def is_same_tensor(a: tf.Tensor, b: tf.Tensor) -> bool:
    """Whether two tensors are the same but for casts, which each layer makes for itself."""
    if not (tf.is_symbolic_tensor(a) or tf.is_symbolic_tensor(b)):
        return a.dtype == b.dtype and a.shape == b.shape and bool(tf.reduce_all(a == b))
    return _uncast(a) is _uncast(b)


def is_read(x: tf.Tensor) -> bool:
    """Whether an operation reads the values of a graph's tensor; of others nobody knows."""
    return tf.is_symbolic_tensor(x) and any(op.type not in _MEASURING for op in x.consumers())


def _uncast(x: Any) -> Any:
    while tf.is_symbolic_tensor(x) and x.op.type == "Cast":
        x = x.op.inputs[0]
    return x


def _key(x: Any) -> Any:
    # Not the object's identity: those of an operation's tensors need not last.
    return x.name if tf.is_symbolic_tensor(x) else id(x)


class _Recording:
    """While it is entered, calls of the layers are noted in `found`."""

    def __init__(self, layers: Sequence[keras.layers.Layer], graph: Any, found: list):
        self.layers, self.graph, self.found = layers, graph, found

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
            start = len(self.graph.get_operations())
            outputs = call(*args, **kwargs)
            stop = len(self.graph.get_operations())
            bound = call_signature(layer).bind(*args, **kwargs).arguments
            self.found.append((layer, bound, outputs, start, stop))
            return outputs

        return record


def _as_call(
    layer: keras.layers.Layer,
    bound: dict,
    outputs: Any,
    start: int,
    stop: int,
    graph: Any,
    operations: list,
    number: dict,
    leaving: set,
) -> LayerCall:
    source = next(iter(bound.values()), None)
    several = isinstance(outputs, (tuple, list))
    output = next(iter(outputs), None) if several else outputs
    returned = len(outputs) if several else None
    if obstacle := _obstacle(source, output, graph):
        return LayerCall(layer, source, output, returned, obstacle)
    same, kept, adds = {_key(source)}, {_key(source)}, False
    for op in operations[start:stop]:
        inputs = [_key(x) for x in op.inputs]
        if op.type in _PASSING:
            same.update(_key(y) for x, y in zip(inputs, op.outputs) if x in same)
            kept.update(_key(y) for x, y in zip(inputs, op.outputs) if x in kept)
        elif op.type in _ADDING:
            adds = adds or bool(same.intersection(inputs))
            kept.update(_key(y) for y in op.outputs if kept.intersection(inputs))
    return LayerCall(
        layer,
        source,
        output,
        returned,
        arguments={k: v for k, v in list(bound.items())[1:] if v is not None and k != "training"},
        adds_input=adds,
        keeps_input=_key(output) in kept,
        read_from=(start, stop),
        readers=frozenset(number[op.name] for op in output.consumers()),
        leaves=_key(output) in leaving,
    )


def _obstacle(source: Any, output: Any, graph: Any) -> str | None:
    if isinstance(source, (list, tuple, dict)):
        return "is called on several tensors in one argument"
    if not tf.is_tensor(output):
        return "returns something else than a tensor first"
    if any(getattr(x, "graph", None) is not graph for x in (source, output)):
        return "is called inside a loop or a branch, or on constants"
    return None
