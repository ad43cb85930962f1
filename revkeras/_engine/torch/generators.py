"""A step's two passes, which draw the same random numbers.

Keras's Dropout without a seed draws from PyTorch's global generator, not from a `SeedGenerator`
that would be a part of the layer's state.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

from revkeras._engine.carry import Carry
from revkeras._engine.step import Step
from revkeras._engine.walk import backward_pass, forward_pass


@dataclasses.dataclass(frozen=True)
class Replays:
    """The two ways through a step, see `forward_pass` and `backward_pass`."""

    forward: Callable
    backward: Callable

    def read(self, state: list) -> list:
        return state


def passes_of(step: Step, carry: Carry, weights: list, state: list, known: dict) -> Replays:
    """The passes of a step. The way back draws what the way forwards drew."""
    step = replaying(step)
    return Replays(forward_pass(step), backward_pass(step, step.block))


def replaying(step: Step) -> Step:
    """The step with a block that draws in each call what it drew in the first."""
    noted: list = []

    def block(source: list, *operands: Any) -> tuple:
        devices = sorted({x.device.index for x in source if x.is_cuda})
        if not noted:
            noted.append(_states(devices))
            return step.block(source, *operands)
        with _from(noted[0], devices):
            return step.block(source, *operands)

    return dataclasses.replace(step, block=block)


def unchanged_draws() -> contextlib.AbstractContextManager:
    """What is drawn inside is drawn again behind it."""
    return torch.random.fork_rng()


def after(gate: Any, values: Any) -> Any:
    """The values: PyTorch computes in order."""
    return values


def _states(devices: list[int]) -> list:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(i) for i in devices)]


@contextlib.contextmanager
def _from(states: list, devices: list[int]) -> Iterator[None]:
    with torch.random.fork_rng(devices):
        torch.set_rng_state(states[0])
        for i, state in zip(devices, states[1:], strict=True):
            torch.cuda.set_rng_state(state, i)
        yield
