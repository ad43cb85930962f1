"""A function's operations, see `revkeras._engine.tensorflow.graph_operations`.

PyTorch has no graph of a function, but a mode that sees each operation. The function runs on the
"meta" device, where tensors have shapes and no values.
"""

import contextvars
import functools
from collections.abc import Callable, Hashable
from typing import Any

import keras
import optree
import torch

# Private, and the one way to see operations. Checked on PyTorch 2.13.
from torch.utils._python_dispatch import TorchDispatchMode

from revkeras._engine.operation import Operation, at_known_sizes

_KINDS = {
    # `empty_like` is how Keras brings a tensor to the "meta" device, though it is there.
    **dict.fromkeys(("_to_copy", "alias", "clone", "detach", "empty_like"), "hands on"),
    **dict.fromkeys(("add", "add_"), "adds"),
}
_noting = contextvars.ContextVar("noting")


def operations_of(function: Callable, arguments: Any) -> tuple[list[Operation], set[Hashable]]:
    """The operations of `function(*arguments)`, and the keys of the tensors that it returns."""
    return at_known_sizes(functools.partial(_operations, function), arguments)


def mark(x: torch.Tensor, label: str) -> None:
    """Notes an operation of kind `"mark"` that reads `x`, in a function that is looked at."""
    _noting.get().note("mark", [x], [], label)


def is_same_tensor(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are the same, or have equal values."""
    if a is b:
        return True
    if "meta" in (a.device.type, b.device.type):
        return False
    return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())


def is_read(x: torch.Tensor) -> bool:
    """Nobody knows what reads a tensor."""
    return False


def _operations(function: Callable, specs: Any) -> tuple[list[Operation], set[Hashable]]:
    with keras.device("meta"), keras.StatelessScope(), torch.no_grad(), _Noting() as noting:
        token = _noting.set(noting)
        try:
            made = keras.tree.map_structure(_placeholder, specs)
            results = function(*made)
        finally:
            _noting.reset(token)
    leaving = {id(x) for x in optree.tree_leaves(results) if torch.is_tensor(x)}
    return noting.operations, leaving


def _placeholder(x: keras.KerasTensor) -> torch.Tensor:
    return keras.ops.zeros(x.shape, x.dtype)


class _Noting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.tensors: list = []  # they stay, so that no two have one identity

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        outputs = function(*args, **(kwargs or {}))
        kind = _KINDS.get(function.overloadpacket.__name__, "computes")
        self.note(kind, (args, kwargs or {}), outputs)
        return outputs

    def note(self, kind: str, inputs: Any, outputs: Any, label: str | None = None) -> None:
        read, made = (
            [x for x in optree.tree_leaves(xs) if torch.is_tensor(x)] for xs in (inputs, outputs)
        )
        self.tensors += [*read, *made]
        self.operations.append(Operation(kind, tuple(map(id, read)), tuple(map(id, made)), label))
