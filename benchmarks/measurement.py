"""What one process of the benchmark measures, and what it found."""

import dataclasses
from collections.abc import Callable

KERAS_CONTESTANTS = {
    "reversible": 'memory_mode="reversible"',
    "checkpoint": 'memory_mode="checkpoint"',
    "keras.remat": "keras.remat on each block",
    "none": 'memory_mode="none"',
    "keras-default": "plain Keras model, default compile",
    "keras-jit": "plain Keras model, jit_compile=True",
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
    """What one process measures; with no steps, the first step alone."""

    case: str  # "step" or "first step"
    workload: str
    depth: int
    round: int
    contestant: str
    batch: int
    steps: int


@dataclasses.dataclass(frozen=True)
class Training:
    """A model ready to train, and what is to be known of its gradients."""

    step: Callable[[], object]
    gradient_bytes: int  # of one set
    holds_all_gradients: bool  # when the backward pass is over
    jit_compiled: bool = False


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A configuration and what its training step costs."""

    configuration: Configuration
    build_seconds: float
    first_step_seconds: float
    jit_compiled: bool
    gradient_bytes: int
    subtracted_gradient_bytes: int
    peak_bytes: int | None = None  # over the level between steps
    step_seconds: float | None = None

    @property
    def activation_bytes(self):
        """The peak without what is known to be gradients in it."""
        return None if self.peak_bytes is None else self.peak_bytes - self.subtracted_gradient_bytes


def as_values(measurement):
    """For a JSON file."""
    return {
        **dataclasses.asdict(measurement),
        "activation_bytes": measurement.activation_bytes,
    }


def from_values(values):
    values = {name: value for name, value in values.items() if name != "activation_bytes"}
    return Measurement(**{**values, "configuration": Configuration(**values["configuration"])})
