"""What PyTorch records now, and how variables are read meanwhile."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import optree
import torch

from revkeras._keras import raw
from revkeras.debugging import checks_enabled

joins_compile = True


def is_eager() -> bool:
    """Whether operations run when they are called."""
    return not torch.compiler.is_compiling()


def may_be_replayed() -> bool:
    """Whether anything could ask for the gradient of what is computed now."""
    return torch.is_grad_enabled()


@contextlib.contextmanager
def eager_scope() -> Iterator[None]:
    """Inside, operations run when they are called, and are not recorded."""
    with torch.no_grad():
        yield


def has_float64() -> bool:
    """Whether float64 has 64 bits."""
    return True


def snapshot(variables: Sequence) -> list:
    """The variables' values: parameters that are changed in place, later."""
    return [v.value for v in variables]


def read_late(read: Callable[[list], list]) -> Callable[[list], list]:
    """`read`: it copies nothing."""
    return read


def are_initialized(variables: Sequence) -> bool:
    """Whether all variables have values; those made in a stateless scope get them later."""
    return all(raw(v) is not None for v in variables)


def compiles_by_default() -> bool:
    """Whether steps are to be compiled by themselves."""
    return False


def refusing_merges(block: str) -> contextlib.AbstractContextManager:
    """Nothing to refuse."""
    return contextlib.nullcontext()


def require(condition: Any, message: str, tensors: list) -> list:
    """`tensors`; an error if `condition` is false."""
    if not bool(torch.as_tensor(condition).all()):
        raise ValueError(message)
    return tensors


def finite(tensors: Any, subject: str) -> Any:
    """The tensors; where checks are enabled, an error if one has values that are not finite."""
    if checks_enabled():
        for x in optree.tree_leaves(tensors):
            if torch.is_tensor(x) and x.is_floating_point():
                require(torch.isfinite(x), f"{subject} values that are not finite", [])
    return tensors
