"""What one process of the benchmark measures, and what it found."""

import dataclasses
from collections.abc import Callable

KERAS_CONTESTANTS = {
    "reversible": 'memory_mode="reversible"',
    "checkpoint": 'memory_mode="checkpoint"',
    "keras.remat": "keras.remat on each block",
    "none": 'memory_mode="none"',
    "forward": "the forward pass of mode none alone",
    "keras-default": "plain Keras model, default compile",
    "keras-jit": "plain Keras model, jit_compile=True",
    "weights-alone": "a layer that reads these weights and computes nothing",
}
PYTORCH_CONTESTANTS = {
    "revlib": "RevLib",
    "memcnn": "MemCNN",
    "torch-checkpoint": "torch.utils.checkpoint",
    "torch": "plain PyTorch",
}
CONTESTANTS = {**KERAS_CONTESTANTS, **PYTORCH_CONTESTANTS}


def plain_of(contestant):
    """The contestant of the same framework that saves nothing."""
    return "torch" if contestant in PYTORCH_CONTESTANTS else "none"


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What one process measures."""

    case: str  # "memory", "few blocks", "time" or "first step"
    workload: str
    depth: int
    round: int
    contestant: str
    batch: int
    steps: int


@dataclasses.dataclass(frozen=True)
class Training:
    """A model ready to train.

    Where a step holds all gradients before it applies the first, `apply_gradients_at_once`
    changes the steps after it so that they hold none.
    """

    step: Callable[[], object]
    gradient_bytes: int  # of one set
    apply_gradients_at_once: Callable[[], None] | None = None
    jit_compiled: bool = False


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A configuration and what its training step costs."""

    configuration: Configuration
    build_seconds: float
    first_step_seconds: float
    jit_compiled: bool
    gradient_bytes: int
    holds_all_gradients: bool
    peak_bytes: int | None = None  # over the level between steps
    activation_bytes: int | None = None  # the same where gradients are applied as they arrive
    step_seconds: float | None = None

    @property
    def peak_less_gradients_bytes(self):
        """The peak less the gradients that are held at the end of the backward pass.

        Less than the activations where the peak comes before all gradients are there.
        """
        if self.peak_bytes is None:
            return None
        return self.peak_bytes - (self.gradient_bytes if self.holds_all_gradients else 0)


def as_values(measurement):
    """For a JSON file."""
    return {
        **dataclasses.asdict(measurement),
        "peak_less_gradients_bytes": measurement.peak_less_gradients_bytes,
    }


def from_values(values):
    fields = {field.name: values[field.name] for field in dataclasses.fields(Measurement)}
    return Measurement(**{**fields, "configuration": Configuration(**values["configuration"])})
