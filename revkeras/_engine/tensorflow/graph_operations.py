"""The operations that a function is traced to."""

from collections.abc import Callable, Hashable
from typing import Any

import keras
import tensorflow as tf

from revkeras._engine.operation import Operation
from revkeras._engine.tensorflow._private import FuncGraph

_KINDS = {
    **dict.fromkeys(("Identity", "IdentityN", "Cast", "EnsureShape", "StopGradient"), "hands on"),
    **dict.fromkeys(("Add", "AddV2", "AddN"), "adds"),
    **dict.fromkeys(("Shape", "ShapeN", "Size", "Rank"), "measures"),
}
_MARK = "revkeras_mark_"


def operations_of(function: Callable, arguments: Any) -> tuple[list[Operation], set[Hashable]]:
    """The operations of `function(*arguments)`, and the keys of the tensors that it returns.

    Nothing is computed and no variable changes. Those inside loops and branches are left out.

    Args:
        function: A function of a structure of tensors.
        arguments: A list of structures of `KerasTensor`s.
    """
    graph = FuncGraph("operations")
    with graph.as_default(), keras.StatelessScope():
        placeholders = keras.tree.map_structure(
            lambda x: tf.compat.v1.placeholder(x.dtype, x.shape), arguments
        )
        results = function(*placeholders)
    operations = [_operation(op) for op in graph.get_operations()]
    return operations, {_key(x) for x in keras.tree.flatten(results)}


def mark(x: tf.Tensor, label: str) -> None:
    """Makes an operation of kind `"mark"` that reads `x`, in a function that is looked at."""
    tf.identity(x, name=f"{_MARK}{label}")


def is_same_tensor(a: tf.Tensor, b: tf.Tensor) -> bool:
    """Whether two tensors are the same but for casts, which each layer makes for itself."""
    if not (tf.is_symbolic_tensor(a) or tf.is_symbolic_tensor(b)):
        return a.dtype == b.dtype and a.shape == b.shape and bool(tf.reduce_all(a == b))
    return _uncast(a) is _uncast(b)


def is_read(x: tf.Tensor) -> bool:
    """Whether an operation reads the values of a graph's tensor; of others nobody knows."""
    readers = x.consumers() if tf.is_symbolic_tensor(x) else []
    return any(_KINDS.get(op.type) != "measures" for op in readers)


def _operation(op: tf.Operation) -> Operation:
    inputs, outputs = (tuple(_key(x) for x in xs) for xs in (op.inputs, op.outputs))
    name = op.name.rpartition("/")[2]
    if name.startswith(_MARK):
        return Operation("mark", inputs, outputs, name.removeprefix(_MARK))
    return Operation(_KINDS.get(op.type, "computes"), inputs, outputs)


def _uncast(x: Any) -> Any:
    while tf.is_symbolic_tensor(x) and x.op.type == "Cast":
        x = x.op.inputs[0]
    return x


def _key(x: Any) -> Hashable:
    # Not the object's identity: those of an operation's tensors need not last.
    return x.name if tf.is_symbolic_tensor(x) else id(x)
