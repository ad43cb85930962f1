"""An operation of a traced function, as conversions look at it."""

from collections.abc import Hashable
from typing import NamedTuple


class Operation(NamedTuple):
    """One operation, in the order of their calls.

    Attributes:
        kind: `"hands on"` its inputs as they are, `"adds"` them up, `"measures"`
            their shapes, is a `"mark"`, or `"computes"`.
        inputs: The keys of the tensors that it reads.
        outputs: The keys of the tensors that it makes.
        label: What a mark was called.
    """

    kind: str
    inputs: tuple[Hashable, ...]
    outputs: tuple[Hashable, ...]
    label: str | None = None
