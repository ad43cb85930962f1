"""Values that live where they are computed with, and how a step's come to it."""

import contextlib
from collections.abc import Sequence
from typing import Any

from revkeras._engine import verbs
from revkeras._engine.step import Step


class InPlace:
    """The residence that moves nothing; its verbs: `revkeras._engine.tensorflow.residence`."""

    in_place = True

    def place(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def read(self, variables: Sequence) -> list:
        return verbs.snapshot(variables)

    def fetch(self, owners: Sequence, values: list, gate: Any) -> list:
        return values

    def release(self, owners: Sequence, gradients: list) -> list:
        return gradients


def fetch(residence: Any, step: Step, weights: list, state: list, gate: Any) -> tuple[list, list]:
    """A step's values, from where they live."""
    owners = (*step.owners, *step.state_owners)
    values = residence.fetch(owners, [*weights, *state], gate)
    return values[: len(weights)], values[len(weights) :]
