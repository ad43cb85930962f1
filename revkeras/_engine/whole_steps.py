"""Updates at the end of a step, for backends that make none inside the backward pass.

JAX needs none: gradient and update are one program, and XLA updates each weight when its gradient
is there. PyTorch does not have them yet.
"""

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
