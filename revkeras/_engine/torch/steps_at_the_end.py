"""Updates inside the backward pass, which do not exist here yet: all come at the end."""

from collections.abc import Callable, Sequence
from typing import Any


def note_reads(variables: Sequence) -> None:
    """Nothing to note."""


def offer_update(update: Callable, is_known: Callable) -> None:
    """Nothing takes the offer."""


def take_updated() -> None:
    """No variable was updated."""


def use_up(variables: Sequence, gradients: list, tensors: Any) -> tuple[list, Any]:
    """Leaves the gradients to the optimizer."""
    return gradients, tensors
