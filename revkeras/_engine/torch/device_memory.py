"""Where the values that a stack's steps read live, see `revkeras._engine.tensorflow.residence`."""

import contextlib
from collections.abc import Sequence
from typing import Any

import keras
import optree
import torch

from revkeras._engine.in_place import InPlace
from revkeras._engine.torch.grad_modes import snapshot


class OnCpu:
    """Values stay in the host's memory and come to the device one step at a time."""

    in_place = False

    def place(self) -> contextlib.AbstractContextManager:
        return place("host")

    def read(self, variables: Sequence) -> list:
        return snapshot(variables)

    def fetch(self, owners: Sequence, values: list, gate: Any) -> list:
        tensors = [x for x in optree.tree_leaves(gate) if torch.is_tensor(x)]
        device = (tensors or [keras.ops.zeros(())])[0].device
        return [value.to(device, non_blocking=True) for value in values]

    def release(self, owners: Sequence, gradients: list) -> list:
        return [d if d is None else d.to("cpu") for d in gradients]


def residence(offload: str | None) -> InPlace | OnCpu:
    """Where values live by the layer's argument `offload`."""
    return OnCpu() if offload else InPlace()


def place(offload: str | None) -> contextlib.AbstractContextManager:
    """Where variables are made."""
    # On "cpu:0" Keras would make them by a copy, which is no leaf and gets no gradient.
    return keras.device("cpu") if offload else contextlib.nullcontext()


def keep_on_host(variable: Any) -> bool:
    """Whether a layer's weight lives in the host's memory."""
    return variable.value.device.type == "cpu"


def on_device(x: Any) -> Any:
    """A tensor where it can be computed with."""
    return x


def slots_beside(optimizer: Any) -> contextlib.AbstractContextManager:
    """Inside, an optimizer makes what it keeps of a variable beside it, as it does anyway."""
    return contextlib.nullcontext()
