"""Where the values that a stack's steps read live, see `revkeras._engine.tensorflow.residence`."""

import contextlib
from collections.abc import Sequence
from typing import Any

from revkeras._engine.jax.traces import snapshot
from revkeras._engine.step import Step


class Resident:
    """Values live where they are computed with."""

    in_place = True

    def place(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def read(self, variables: Sequence) -> list:
        return snapshot(variables)

    def fetch(self, owners: Sequence, values: list, gate: Any) -> list:
        return values

    def release(self, owners: Sequence, gradients: list) -> list:
        return gradients


def residence(offload: str | None) -> Resident:
    """Where values live by the layer's argument `offload`."""
    if offload:
        raise NotImplementedError(
            "Invalid value for argument `offload`: expected None on Keras's JAX backend, received "
            f"offload={offload!r}."
        )
    return Resident()


def place(offload: str | None) -> contextlib.AbstractContextManager:
    """Where variables are made."""
    return contextlib.nullcontext()


def is_on_host(variable: Any) -> bool:
    """Whether a Keras variable lives in the host's memory."""
    return variable.value.sharding.memory_kind == "pinned_host"


def fetch(residence: Any, step: Step, weights: list, state: list, gate: Any) -> tuple[list, list]:
    """A step's values, from where they live."""
    owners = (*step.owners, *step.state_owners)
    values = residence.fetch(owners, [*weights, *state], gate)
    return values[: len(weights)], values[len(weights) :]
